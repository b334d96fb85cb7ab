//! The planes of a node: each follows the bus, puts what it sees into effect, and reports back.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_bus::Subscriber;
use mesonet_dns_server::Server;
use mesonet_lb_dataplane::LoadBalancer;
use mesonet_model::{Revision, ServiceKey};

/// Serves names until the control plane is gone.
pub async fn follow_with_dns(mut server: Server, mut subscriber: Subscriber) {
    while let Some(update) = subscriber.next().await {
        server.apply(&update.view, &update.delta);
        subscriber.report(update.view.revision, BTreeSet::new(), BTreeMap::new()).await;
    }
}

/// Balances services until the control plane is gone. Reports also when connections of draining endpoints end.
pub async fn follow_with_lb(mut balancer: LoadBalancer, mut subscriber: Subscriber) {
    let mut busy = balancer.busy();
    let mut failed = BTreeMap::new();
    let mut applied = Revision::ZERO;
    loop {
        tokio::select! {
            update = subscriber.next() => {
                let Some(update) = update else { return };
                let failed_before = failed;
                failed = balancer.apply(&update.view, &update.delta).await;
                log_changes(&failed_before, &failed);
                applied = update.view.revision;
            }
            Ok(()) = busy.changed() => {}
        }
        let busy = busy.borrow_and_update().clone();
        subscriber.report(applied, busy, failed.clone()).await;
    }
}

/// Says what has newly failed and what works again, once per change.
fn log_changes(before: &BTreeMap<ServiceKey, String>, failed: &BTreeMap<ServiceKey, String>) {
    for (service, reason) in failed {
        if before.get(service) != Some(reason) {
            tracing::warn!(%service, reason, "Service cannot be balanced");
        }
    }
    for service in before.keys().filter(|service| !failed.contains_key(service)) {
        tracing::info!(%service, "Service is balanced again");
    }
}
