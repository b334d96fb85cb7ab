//! What connections to each endpoint have come to, shared by the threads that carry them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use mesonet_lb_plan::{EndpointCount, EndpointId};
use mesonet_model::ServiceKey;

use crate::endpoint_metrics::{EndpointMetrics, EndpointSeries, EndpointTraffic};

type Key = (ServiceKey, EndpointId);

/// The accounts of all endpoints. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger(Arc<Mutex<Books>>);

#[derive(Debug, Default)]
struct Books {
    accounts: BTreeMap<Key, Entry>,
    /// Endpoints that have failed since somebody asked.
    failed: BTreeSet<Key>,
}

#[derive(Debug)]
struct Entry {
    account: Weak<Account>,
    /// Nothing, until something is counted: of most endpoints of a large cluster a node counts nothing.
    exported: Option<Box<(Arc<EndpointSeries>, EndpointTraffic)>>,
}

/// What connections to one endpoint have come to, for as long as somebody holds it.
#[derive(Debug)]
pub(crate) struct Account {
    key: Key,
    books: Arc<Mutex<Books>>,
    connections: AtomicU64,
    active: AtomicU64,
    failures: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
}

impl Ledger {
    /// The account of an endpoint; opened if nobody holds it.
    pub(crate) fn account(&self, service: &ServiceKey, endpoint: &EndpointId) -> Arc<Account> {
        let key = (service.clone(), endpoint.clone());
        let mut books = locked(&self.0);
        if let Some(account) = books.accounts.get(&key).and_then(|entry| entry.account.upgrade()) {
            return account;
        }
        let account = Arc::new(Account {
            key: key.clone(),
            books: Arc::clone(&self.0),
            connections: AtomicU64::new(0),
            active: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
        });
        books.accounts.insert(key, Entry { account: Arc::downgrade(&account), exported: None });
        account
    }

    /// The counts of an endpoint; zeros if nobody holds its account.
    pub(crate) fn count(&self, service: &ServiceKey, endpoint: &EndpointId) -> EndpointCount {
        let key = (service.clone(), endpoint.clone());
        // Held to the end: the last holder's drop takes the lock.
        let account = locked(&self.0).accounts.get(&key).and_then(|entry| entry.account.upgrade());
        account.map(|account| account.count()).unwrap_or_default()
    }

    /// The endpoints that have failed since this was called last.
    pub(crate) fn take_failed(&self) -> BTreeSet<Key> {
        std::mem::take(&mut locked(&self.0).failed)
    }

    /// Brings the metrics of endpoints up to date.
    pub(crate) fn export(&self, metrics: &EndpointMetrics) {
        // Held to the end: the last holder's drop takes the lock.
        let mut held = Vec::new();
        let mut books = locked(&self.0);
        for ((service, endpoint), entry) in &mut books.accounts {
            let Some(account) = entry.account.upgrade() else { continue };
            entry.export(account.traffic(), || metrics.endpoint(service, endpoint.address));
            held.push(account);
        }
        drop(books);
    }
}

impl Entry {
    /// Adds what was counted since the last time; `series` if it is the first time.
    fn export(&mut self, traffic: EndpointTraffic, series: impl FnOnce() -> Option<Arc<EndpointSeries>>) {
        let old = self.exported.as_ref().map_or(EndpointTraffic::default(), |exported| exported.1);
        if traffic == old {
            return;
        }
        if self.exported.is_none() {
            self.exported = series().map(|series| Box::new((series, old)));
        }
        if let Some((series, exported)) = self.exported.as_deref_mut() {
            series.add(&traffic, exported);
            *exported = traffic;
        }
    }
}

impl Account {
    /// The endpoint is given a connection or session.
    pub(crate) fn begin(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection or session of the endpoint has ended, or has not come about.
    pub(crate) fn end(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// The endpoint has taken a connection.
    pub(crate) fn succeed(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// The endpoint has not taken a connection, or has reset it without a word.
    pub(crate) fn fail(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut books = locked(&self.books);
        if !books.failed.contains(&self.key) {
            books.failed.insert(self.key.clone());
        }
    }

    /// Bytes were forwarded from and to clients.
    pub(crate) fn carry(&self, bytes_up: u64, bytes_down: u64) {
        for (sum, bytes) in [(&self.bytes_up, bytes_up), (&self.bytes_down, bytes_down)] {
            if bytes > 0 {
                sum.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    fn traffic(&self) -> EndpointTraffic {
        EndpointTraffic {
            connections: self.connections.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            bytes_up: self.bytes_up.load(Ordering::Relaxed),
            bytes_down: self.bytes_down.load(Ordering::Relaxed),
            ..EndpointTraffic::default()
        }
    }

    fn count(&self) -> EndpointCount {
        EndpointCount {
            connections: self.connections.load(Ordering::Relaxed),
            active: self.active.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut books = locked(&self.books);
        // Somebody may have opened another one for the endpoint meanwhile.
        if books.accounts.get(&self.key).is_some_and(|entry| entry.account.strong_count() == 0) {
            books.accounts.remove(&self.key);
            books.failed.remove(&self.key);
        }
    }
}

fn locked(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId, TaskKey};

    use super::*;

    #[test]
    fn holders_share_an_account_and_the_last_one_closes_it() {
        let ledger = Ledger::default();
        let service: ServiceKey = "tcp/web@marathon:80".parse().expect("key");
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
        let id = EndpointId { task, address: ([127, 0, 0, 1], 31_000).into() };
        let [first, second] = [ledger.account(&service, &id), ledger.account(&service, &id)];
        first.begin();
        first.succeed();
        second.begin();
        second.fail();
        second.end();
        let count = EndpointCount { connections: 1, active: 1, failures: 1 };
        assert_eq!(ledger.count(&service, &id), count);
        drop(first);
        assert_eq!(ledger.count(&service, &id), count);
        assert_eq!(ledger.take_failed().len(), 1);
        assert_eq!(ledger.take_failed().len(), 0);
        drop(second);
        assert_eq!(ledger.count(&service, &id), EndpointCount::default());
        assert_eq!(locked(&ledger.0).accounts.len(), 0);
    }
}
