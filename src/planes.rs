//! The planes of a node: each follows the bus, puts what it sees into effect, and reports back.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_bus::Subscriber;
use mesonet_dns_server::Server;
use mesonet_lb_dataplane::{LoadBalancer, RETRY_INTERVAL};
use mesonet_model::Revision;

/// Serves names until the control plane is gone.
pub async fn follow_with_dns(mut server: Server, mut subscriber: Subscriber) {
    while let Some(update) = subscriber.next().await {
        server.apply(&update.view, &update.delta);
        subscriber.report(update.view.revision, BTreeSet::new(), BTreeMap::new()).await;
    }
}

/// Balances services until the control plane is gone. Reports also when connections of draining endpoints end, and
/// when services that failed are in effect after all.
pub async fn follow_with_lb(mut balancer: LoadBalancer, mut subscriber: Subscriber) {
    let mut busy = balancer.busy();
    let mut failed = BTreeMap::new();
    let mut applied = Revision::ZERO;
    loop {
        tokio::select! {
            update = subscriber.next() => {
                let Some(update) = update else { return };
                failed = balancer.apply(&update.view, &update.delta).await;
                applied = update.view.revision;
            }
            Ok(()) = busy.changed() => {}
            () = tokio::time::sleep(RETRY_INTERVAL), if !failed.is_empty() => {
                let failed_before = failed;
                failed = balancer.retry().await;
                if failed == failed_before {
                    continue;
                }
            }
        }
        let busy = busy.borrow_and_update().clone();
        subscriber.report(applied, busy, failed.clone()).await;
    }
}
