//! What every data plane can do.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use mesonet_lb_plan::{EndpointCount, EndpointId, Op, RouteTable};
use mesonet_model::{ServiceKey, TaskKey};
use tokio::sync::watch;

/// Carries out operations. It makes no decision of its own about who gets which connection.
pub trait Dataplane {
    /// What is in effect.
    fn read(&self) -> &RouteTable;

    /// Carries out operations in their order and returns when they are in effect.
    ///
    /// An operation that fails is skipped and reported with its service; the table that [`Dataplane::read`] returns
    /// does not have it. The others are carried out.
    fn apply(&mut self, ops: &[Op]) -> impl Future<Output = BTreeMap<ServiceKey, String>> + Send;

    /// The tasks whose endpoints drain and still have open connections.
    fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>>;

    /// What connections to an endpoint have come to; zeros of one that it does not count.
    fn count(&self, service: &ServiceKey, endpoint: &EndpointId) -> EndpointCount {
        let _uncounted = (service, endpoint);
        EndpointCount::default()
    }

    /// The endpoints that connections failed to reach since the last call, as far as it notices.
    fn take_failed(&mut self) -> BTreeSet<(ServiceKey, EndpointId)> {
        BTreeSet::new()
    }
}
