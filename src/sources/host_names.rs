//! Looks up the host names that stand where addresses are needed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long one name may take. What is not known then stays without addresses until the next time.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// Names that are looked up at the same time: each takes a thread while it waits for the system's resolver.
const LOOKUPS_MAX: usize = 16;

/// The addresses of host names, by the system's resolver. A name without any has an empty list.
pub async fn look_up(names: impl IntoIterator<Item = String>) -> BTreeMap<String, Vec<IpAddr>> {
    let mut names = names.into_iter();
    let mut under_way = JoinSet::new();
    let mut found = BTreeMap::new();
    loop {
        while under_way.len() < LOOKUPS_MAX
            && let Some(name) = names.next()
        {
            under_way.spawn(look_up_one(name));
        }
        match under_way.join_next().await {
            None => return found,
            Some(Ok((name, addresses))) => {
                found.insert(name, addresses);
            }
            Some(Err(error)) => tracing::error!(%error, "BUG: looking up a host name has failed"),
        }
    }
}

async fn look_up_one(name: String) -> (String, Vec<IpAddr>) {
    // The port is not looked at.
    let looking_up = tokio::net::lookup_host((name.as_str(), 0));
    let mut addresses: Vec<IpAddr> = match timeout(LOOKUP_TIMEOUT, looking_up).await {
        Ok(Ok(addresses)) => addresses.map(|address| address.ip()).collect(),
        Ok(Err(error)) => {
            tracing::debug!(%error, name, "A host name has no address");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!(name, "A host name was not looked up in time");
            Vec::new()
        }
    };
    addresses.sort();
    addresses.dedup();
    (name, addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_name_has_an_answer() {
        let names = (0..3 * LOOKUPS_MAX).map(|number| format!("127.0.0.{number}"));
        let found = look_up(names.chain(["localhost".to_owned()])).await;
        assert_eq!(found.len(), 3 * LOOKUPS_MAX + 1);
        assert!(found["localhost"].iter().all(IpAddr::is_loopback) && !found["localhost"].is_empty());
        assert_eq!(found["127.0.0.9"], [IpAddr::from([127, 0, 0, 9])]);
    }
}
