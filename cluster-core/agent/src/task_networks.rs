//! Addresses of tasks: chosen before a task starts, free again after its end.

use mesonet_model::{TaskKey, TaskSpec};
use mesonet_netlink::Netlink;
use thiserror::Error;
use uuid::Uuid;

use crate::agent::Agent;
use crate::attachments::{self, AttachmentError, Attachments};
use crate::checkpoint;
use crate::container_network::{ContainerNetwork, NoNetwork, Surroundings};

/// The interfaces of a task that is to start, as long as nobody else may choose addresses.
#[derive(Debug, Default)]
pub(crate) struct PlannedNetwork {
    /// `None` on the host's network.
    pub(crate) network: Option<ContainerNetwork>,
    /// Held until the addresses are written down.
    _others: Option<Attachments>,
}

/// A task cannot have the interfaces that it wants.
#[derive(Debug, Error)]
pub(crate) enum PlanNetworkError {
    #[error(transparent)]
    None(#[from] NoNetwork),
    #[error(transparent)]
    Others(#[from] AttachmentError),
}

impl Agent {
    /// Chooses the interfaces of a task.
    pub(crate) fn plan_network(
        &mut self,
        spec: &TaskSpec,
        container: Uuid,
    ) -> Result<PlannedNetwork, PlanNetworkError> {
        let Some(networking) = &spec.networking else { return Ok(PlannedNetwork::default()) };
        if !self.lacking.is_empty() {
            return Err(NoNetwork::Rights(self.lacking.clone()).into());
        }
        let others = self.look_at_others()?;
        let surroundings = Surroundings { host: self.config.address, name_server: self.config.container_dns };
        let network = ContainerNetwork::plan(networking, container, &mut self.addresses, surroundings)?;
        Ok(PlannedNetwork { network: Some(network), _others: Some(others) })
    }

    /// A task has ended: its addresses are free, and a bridge without others goes.
    pub(crate) fn release_network(&mut self, key: &TaskKey) {
        let Some(run) = self.tasks.get(key).and_then(|task| task.run.as_ref()) else { return };
        let Some(network) = run.launch.network.clone() else { return };
        self.addresses.free(run.launch.container);
        let _others = match self.look_at_others() {
            Ok(others) => others,
            Err(error) => {
                let error = checkpoint::in_full(&error);
                tracing::warn!(error, "Bridges are left, because others may use them");
                return;
            }
        };
        for interface in &network.interfaces {
            if interface.addresses.iter().any(|each| self.addresses.uses(&each.subnet)) {
                continue;
            }
            let removed = Netlink::open().and_then(|mut host| host.remove_link(&interface.bridge));
            if let Err(error) = removed {
                let error = checkpoint::in_full(&error);
                tracing::warn!(bridge = interface.bridge, error, "Cannot remove a bridge");
            }
        }
    }

    /// Takes note of the addresses of containers that others run. They stay the same while the result is there.
    pub(crate) fn look_at_others(&mut self) -> Result<Attachments, AttachmentError> {
        let others = Attachments::hold(&self.layout)?;
        self.addresses.free(attachments::OWNER);
        for address in others.addresses()? {
            self.addresses.restore(address, attachments::OWNER);
        }
        Ok(others)
    }
}
