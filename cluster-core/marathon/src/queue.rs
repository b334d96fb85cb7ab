//! Why instances of an app wait, as offers come and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesonet_model::{AgentId, Offer, Timestamp};

use crate::{NoMatchReason, QueueEntry, RejectSummary, UnusedOffer};

/// Agents whose latest unfitting offer is kept per app. More would only make the answer unreadable; offers of further
/// agents are counted but not listed.
const UNUSED_OFFERS_MAX: usize = 1000;

/// The tests that offers must pass, in their order.
const FUNNEL: [NoMatchReason; 12] = [
    NoMatchReason::UnfulfilledRole,
    NoMatchReason::UnfulfilledConstraint,
    NoMatchReason::NoCorrespondingReservationFound,
    NoMatchReason::AgentMaintenance,
    NoMatchReason::InsufficientCpus,
    NoMatchReason::InsufficientMemory,
    NoMatchReason::InsufficientDisk,
    NoMatchReason::InsufficientGpus,
    NoMatchReason::InsufficientPorts,
    NoMatchReason::UnfulfilledNetwork,
    NoMatchReason::InsufficientAddresses,
    NoMatchReason::DeclinedScarceResources,
];

/// Instances of an app that wait to be launched.
#[derive(Debug)]
pub(crate) struct Queue {
    count: u32,
    since: Timestamp,
    processed: u64,
    unused: u64,
    last_unused_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
    /// Offers by the first test that they failed.
    declined: BTreeMap<NoMatchReason, u64>,
    latest: BTreeMap<AgentId, Arc<UnusedOffer>>,
    /// What readers see, kept until something changes: a status of a running instance must not cost a list of offers.
    entry: Option<Arc<QueueEntry>>,
}

impl Queue {
    /// Instances that have begun to wait.
    pub(crate) fn new(count: u32, now: Timestamp) -> Self {
        Self {
            count,
            since: now,
            processed: 0,
            unused: 0,
            last_unused_at: None,
            last_used_at: None,
            declined: BTreeMap::new(),
            latest: BTreeMap::new(),
            entry: None,
        }
    }

    /// How many instances wait.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Sets how many instances wait.
    pub(crate) fn set_count(&mut self, count: u32) {
        if count != self.count {
            self.count = count;
            self.entry = None;
        }
    }

    /// An offer was used for at least one instance.
    pub(crate) fn offer_used(&mut self, offer: &Offer, now: Timestamp) {
        self.entry = None;
        self.processed += 1;
        self.last_used_at = Some(now);
        self.latest.remove(&offer.agent);
    }

    /// An offer did not fit, for these reasons in the order of the tests.
    pub(crate) fn offer_unused(&mut self, offer: &Offer, reasons: Vec<NoMatchReason>, now: Timestamp) {
        self.entry = None;
        self.processed += 1;
        self.unused += 1;
        self.last_unused_at = Some(now);
        if let Some(first) = reasons.first() {
            *self.declined.entry(*first).or_default() += 1;
        }
        if self.latest.len() < UNUSED_OFFERS_MAX || self.latest.contains_key(&offer.agent) {
            let unused = UnusedOffer {
                agent: offer.agent.clone(),
                host: offer.agent_info.hostname.clone(),
                cpus: offer.resources.cpus,
                mem: offer.resources.mem,
                reasons,
                timestamp: now,
            };
            self.latest.insert(offer.agent.clone(), Arc::new(unused));
        }
    }

    /// What readers see.
    pub(crate) fn entry(&mut self, backoff_until: Option<Timestamp>) -> Arc<QueueEntry> {
        if let Some(entry) = self.entry.as_ref().filter(|entry| entry.backoff_until == backoff_until) {
            return Arc::clone(entry);
        }
        let entry = Arc::new(self.make_entry(backoff_until));
        self.entry = Some(Arc::clone(&entry));
        entry
    }

    fn make_entry(&self, backoff_until: Option<Timestamp>) -> QueueEntry {
        let mut latest = BTreeMap::new();
        for first in self.latest.values().filter_map(|offer| offer.reasons.first()) {
            *latest.entry(*first).or_default() += 1;
        }
        let listed = u64::try_from(self.latest.len()).unwrap_or(u64::MAX);
        QueueEntry {
            count: self.count,
            since: self.since,
            backoff_until,
            processed_offers: self.processed,
            unused_offers: self.unused,
            last_unused_offer_at: self.last_unused_at,
            last_used_offer_at: self.last_used_at,
            last_offers: funnel(&latest, listed),
            all_offers: funnel(&self.declined, self.processed),
            unused: self.latest.values().cloned().collect(),
        }
    }
}

/// How many of the offers came to each test and how many failed it.
fn funnel(declined: &BTreeMap<NoMatchReason, u64>, offers: u64) -> Vec<RejectSummary> {
    let mut left = offers;
    let summary = FUNNEL.into_iter().map(|reason| {
        let declined = declined.get(&reason).copied().unwrap_or(0);
        let processed = left;
        left = left.saturating_sub(declined);
        RejectSummary { reason, declined, processed }
    });
    summary.collect()
}
