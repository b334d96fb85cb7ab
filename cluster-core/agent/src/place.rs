//! Where the node is reached, which may change while its tasks run.

use std::net::IpAddr;

use mesonet_model::TaskKey;
use tokio::sync::watch;

use crate::agent::Agent;

/// Where a node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The address at which host ports are reached.
    pub address: IpAddr,
    /// The host name to register.
    pub hostname: String,
}

/// The next place that the node moves to; never if it stays where it is.
pub(crate) async fn next(places: &mut Option<watch::Receiver<Place>>) -> Place {
    if let Some(receiver) = places
        && receiver.changed().await.is_ok()
    {
        return receiver.borrow_and_update().clone();
    }
    // Nobody looks any more.
    *places = None;
    std::future::pending().await
}

impl Agent {
    /// The node is reached elsewhere from now on: tasks on its network are checked there, and everybody else learns it by
    /// the registration. Tasks that run have been told the earlier address.
    pub(crate) fn move_to(&mut self, place: Place) {
        if (place.address, &place.hostname) == (self.config.address, &self.config.hostname) {
            return;
        }
        tracing::warn!(from = %self.config.address, to = %place.address, "The node has another address");
        self.config.address = place.address;
        self.config.hostname = place.hostname;
        for key in self.tasks.keys().cloned().collect::<Vec<TaskKey>>() {
            let run = self.tasks.get_mut(&key).and_then(|task| task.run.as_mut());
            let on_host = run.filter(|run| run.launch.network.is_none());
            if on_host.is_some_and(|run| run.watch.take().is_some()) {
                self.begin_checks(&key);
            }
        }
        self.register();
    }
}
