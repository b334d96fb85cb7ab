//! Endpoints that connections fail to reach, as one node sees it.
//!
//! ```text
//!            FAILURES_MIN failures, at least as many as successes
//!   Trusted ─────────────────────────────────────────────────────► Ejected
//!      ▲                       its time is over                       │
//!      └──────────────────────────────────────────────────────────────┘
//! ```
//!
//! A machine that is given counts and time. It says who is ejected; how many may be is the service's policy.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Add;
use std::time::Duration;

use mesonet_model::{ServiceKey, Timestamp};

use crate::EndpointId;

/// What connections to an endpoint have come to since its node began to count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EndpointCount {
    /// Connections and sessions that it took.
    pub connections: u64,
    /// Those of them that are open.
    pub active: u64,
    /// Attempts that it refused or did not answer in time, and connections that it reset before it said anything.
    pub failures: u64,
}

/// Of two data planes together.
impl Add for EndpointCount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            active: self.active + other.active,
            failures: self.failures + other.failures,
        }
    }
}

/// The endpoints that failed, by service.
#[derive(Debug, Default)]
pub struct Outliers {
    failed: BTreeMap<ServiceKey, BTreeMap<EndpointId, Record>>,
}

#[derive(Debug)]
struct Record {
    /// The counts at the begin of the window.
    base: EndpointCount,
    began: Timestamp,
    /// The failures counted last, and when there was one more.
    failures: u64,
    failed_at: Timestamp,
    ejected_until: Option<Timestamp>,
    /// How often it was ejected in a row.
    ejections: u32,
}

/// Over this time failures are compared with successes.
const WINDOW: Duration = Duration::from_secs(10);

/// Fewer failures say nothing: a server that is replaced in place refuses for a moment.
const FAILURES_MIN: u64 = 5;

/// For how long an endpoint is ejected for the first time; twice as long each time that follows soon after.
const EJECTION: Duration = Duration::from_secs(5);

/// The longest ejection.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// Endpoints that are remembered at most. Further ones are not ejected.
const REMEMBERED_MAX: usize = 10_000;

impl Outliers {
    /// The endpoints whose counts are of interest, beside those that have failed since.
    pub fn watched(&self) -> impl Iterator<Item = (&ServiceKey, &EndpointId)> {
        self.failed.iter().flat_map(|(service, failed)| failed.keys().map(move |id| (service, id)))
    }

    /// Takes what connections to an endpoint have come to. Whether the endpoint is ejected by that.
    pub fn observe(
        &mut self,
        service: &ServiceKey,
        endpoint: &EndpointId,
        count: EndpointCount,
        now: Timestamp,
    ) -> bool {
        if let Some(record) = self.failed.get_mut(service).and_then(|failed| failed.get_mut(endpoint)) {
            return record.observe(count, now);
        }
        let remembered: usize = self.failed.values().map(BTreeMap::len).sum();
        if remembered < REMEMBERED_MAX {
            let failed = self.failed.entry(service.clone()).or_default();
            failed.insert(endpoint.clone(), Record::new(count, now));
        }
        false
    }

    /// Trusts those again whose time is over, and forgets those that have been well for long. The services that have to
    /// be weighed again.
    pub fn pass_time(&mut self, now: Timestamp) -> BTreeSet<ServiceKey> {
        let mut returned = BTreeSet::new();
        self.failed.retain(|service, failed| {
            failed.retain(|_, record| {
                // The clock may have been set back.
                let is_over = |until: Timestamp| until <= now || until > now.plus(EJECTION_MAX);
                if record.ejected_until.is_some_and(is_over) || record.began > now {
                    record.ejected_until = None;
                    record.began = now;
                    returned.insert(service.clone());
                }
                !record.is_over(now)
            });
            !failed.is_empty()
        });
        returned
    }

    /// Forgets the endpoints of a service that are none any more.
    pub fn retain(&mut self, service: &ServiceKey, is_known: impl Fn(&EndpointId) -> bool) {
        let Some(failed) = self.failed.get_mut(service) else { return };
        failed.retain(|endpoint, _| is_known(endpoint));
        if failed.is_empty() {
            self.failed.remove(service);
        }
    }

    /// The ejected endpoints of a service, with when they are tried again.
    pub fn ejected(&self, service: &ServiceKey, now: Timestamp) -> BTreeMap<EndpointId, Timestamp> {
        let failed = self.failed.get(service).into_iter().flatten();
        let ejected = failed.filter_map(|(id, record)| Some((id.clone(), record.ejected_until?)));
        ejected.filter(|(_, until)| *until > now).collect()
    }

    /// When [`Outliers::pass_time`] trusts one again, and why.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        let next = self
            .failed
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|record| record.ejected_until)
            .min()?;
        Some((next, "an ejected endpoint is tried again"))
    }
}

impl Record {
    /// The first failure is what made it known.
    fn new(count: EndpointCount, now: Timestamp) -> Self {
        let base = EndpointCount { failures: count.failures.saturating_sub(1), ..count };
        Self { base, began: now, failures: count.failures, failed_at: now, ejected_until: None, ejections: 0 }
    }

    fn observe(&mut self, count: EndpointCount, now: Timestamp) -> bool {
        if count.failures != self.failures {
            self.failures = count.failures;
            self.failed_at = now;
        }
        if self.ejected_until.is_some() {
            // What was under way when it was ejected says nothing new.
            self.begin(count, now);
            return false;
        }
        let failures = count.failures.saturating_sub(self.base.failures);
        let successes = count.connections.saturating_sub(self.base.connections);
        if failures >= FAILURES_MIN && failures >= successes {
            let time = (EJECTION * 2_u32.saturating_pow(self.ejections.min(16))).min(EJECTION_MAX);
            self.ejected_until = Some(now.plus(time));
            self.ejections += 1;
            self.begin(count, now);
            return true;
        }
        if now.since(self.began) >= WINDOW {
            if failures == 0 {
                self.ejections = self.ejections.saturating_sub(1);
            }
            self.begin(count, now);
        }
        false
    }

    fn begin(&mut self, count: EndpointCount, now: Timestamp) {
        self.base = count;
        self.began = now;
    }

    /// Whether nothing is held against it any more.
    fn is_over(&self, now: Timestamp) -> bool {
        let quiet = now.since(self.failed_at) >= WINDOW * 2;
        self.ejected_until.is_none() && self.ejections == 0 && quiet
    }
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId, TaskKey};

    use super::*;

    /// One endpoint on virtual time.
    struct Scene {
        outliers: Outliers,
        service: ServiceKey,
        endpoint: EndpointId,
        count: EndpointCount,
        now: Timestamp,
    }

    impl Scene {
        fn new() -> Self {
            let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
            Self {
                outliers: Outliers::default(),
                service: "tcp/web@marathon:80".parse().expect("key"),
                endpoint: EndpointId { task, address: ([10, 0, 0, 1], 80).into() },
                count: EndpointCount::default(),
                now: Timestamp::from_millis(1_000_000),
            }
        }

        /// So many successes and failures, then a second passes. Whether the endpoint is ejected afterwards.
        fn second(&mut self, connections: u64, failures: u64) -> bool {
            self.count.connections += connections;
            self.count.failures += failures;
            if failures > 0 || self.outliers.watched().next().is_some() {
                self.outliers.observe(&self.service, &self.endpoint, self.count, self.now);
            }
            self.now = self.now.plus(Duration::from_secs(1));
            self.outliers.pass_time(self.now);
            !self.outliers.ejected(&self.service, self.now).is_empty()
        }

        /// For how many seconds it stays ejected while nothing is sent to it.
        fn seconds_out(&mut self) -> u32 {
            (1..1000).find(|_| !self.second(0, 0)).expect("it comes back")
        }
    }

    #[test]
    fn failures_eject_and_time_returns() {
        let mut scene = Scene::new();
        for _ in 0..4 {
            assert!(!scene.second(0, 1));
        }
        assert!(scene.second(0, 1), "the fifth failure in ten seconds");
        assert_eq!(scene.seconds_out(), 4, "five seconds from the failure");
        assert_eq!(scene.outliers.deadline(), None);
    }

    #[test]
    fn each_ejection_lasts_longer_and_good_conduct_is_rewarded() {
        let mut scene = Scene::new();
        let mut times = Vec::new();
        for _ in 0..8 {
            assert!(!scene.second(0, 1), "the first failure makes it known");
            assert!(scene.second(0, 10));
            times.push(scene.seconds_out() + 1);
        }
        assert_eq!(times, [5, 10, 20, 40, 80, 160, 300, 300]);
        for _ in 0..200 {
            assert!(!scene.second(10, 0));
        }
        assert_eq!(scene.outliers.watched().count(), 0, "it is forgotten");
    }

    #[test]
    fn an_endpoint_that_mostly_works_stays() {
        let mut scene = Scene::new();
        for _ in 0..60 {
            assert!(!scene.second(10, 5));
        }
    }

    #[test]
    fn few_failures_spread_over_time_eject_nobody() {
        let mut scene = Scene::new();
        for _ in 0..20 {
            assert!(!scene.second(0, 1));
            for _ in 0..4 {
                assert!(!scene.second(0, 0));
            }
        }
    }

    #[test]
    fn a_clock_that_is_set_back_ejects_nobody_for_longer() {
        let mut scene = Scene::new();
        scene.second(0, 1);
        assert!(scene.second(0, 9));
        scene.now = Timestamp::from_millis(scene.now.as_millis() - 900_000);
        assert!(!scene.second(0, 0), "it is tried again");
        assert_eq!(scene.outliers.deadline(), None);
        // What is counted since begins a window of its own.
        assert!(scene.second(0, 5), "{:?}", scene.outliers);
        for _ in 0..20 {
            scene.second(5, 0);
        }
        assert_eq!(scene.outliers.ejected(&scene.service, scene.now), BTreeMap::new());
    }

    #[test]
    fn an_endpoint_that_is_gone_is_forgotten() {
        let mut scene = Scene::new();
        scene.second(0, 1);
        assert!(scene.second(0, 9));
        let service = scene.service.clone();
        scene.outliers.retain(&service, |_| false);
        assert_eq!(scene.outliers.ejected(&service, scene.now), BTreeMap::new());
        assert_eq!(scene.outliers.deadline(), None);
    }
}
