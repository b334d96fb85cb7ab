//! Keeps what upstream servers said.
//!
//! Pure but for its lock: time is given. An answer is fresh for its time to live and then stale for as long as the
//! settings allow (RFC 8767). The cache is two generations: what is stored or used goes into the younger one; when that
//! is full, the older one is forgotten and the younger one becomes the older. So what is used stays, in constant time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{LowerName, RData, Record, RecordType};

/// No answer is fresh for longer, whatever its time to live (RFC 8767 §4 suggests days; upstream servers cache too).
const TTL_MAX: u32 = 86_400;

/// No negative answer is fresh for longer: RFC 2308 §5 suggests one to three hours.
const NEGATIVE_TTL_MAX: u32 = 3_600;

/// What is asked. Names are equal whatever their case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) name: LowerName,
    pub(crate) kind: RecordType,
    /// Whether signatures are wanted.
    pub(crate) dnssec_ok: bool,
    /// Whether answers that fail validation are wanted.
    pub(crate) checking_disabled: bool,
}

/// What an upstream server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Success or NXDOMAIN.
    pub(crate) code: ResponseCode,
    /// Whether validation here found it authentic.
    pub(crate) authentic: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

impl Resolved {
    /// For how many seconds it is fresh; 0 if it must not be kept.
    fn ttl(&self) -> u32 {
        if self.answers.is_empty() || self.code == ResponseCode::NXDomain {
            let soa = self.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            // Without a SOA nobody says for how long (RFC 2308 §5).
            soa.unwrap_or(0).min(NEGATIVE_TTL_MAX)
        } else {
            self.answers.iter().map(|record| record.ttl).min().unwrap_or(0).min(TTL_MAX)
        }
    }
}

/// What is kept of a question.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    /// So many seconds old.
    Fresh(Arc<Resolved>, u32),
    /// Too old, but better than nothing.
    Stale(Arc<Resolved>),
}

#[derive(Debug, Clone)]
struct Entry {
    resolved: Arc<Resolved>,
    stored: Instant,
    ttl: Duration,
}

#[derive(Debug, Default)]
struct Generations {
    younger: HashMap<Key, Entry>,
    older: HashMap<Key, Entry>,
}

/// Keeps what upstream servers said.
#[derive(Debug)]
pub(crate) struct Cache {
    generations: Mutex<Generations>,
    /// Most entries of a generation.
    entries_max: usize,
    /// For how long an answer may be used after its time.
    stale_max: Duration,
}

impl Cache {
    /// Keeps at most so many answers.
    pub(crate) fn new(entries_max: usize, stale_max: Duration) -> Self {
        Self { generations: Mutex::default(), entries_max: (entries_max / 2).max(1), stale_max }
    }

    /// What is kept of a question.
    pub(crate) fn get(&self, key: &Key, now: Instant) -> Option<Found> {
        let mut generations = self.generations();
        let entry = match generations.younger.get(key) {
            Some(entry) => entry.clone(),
            None => {
                let entry = generations.older.remove(key)?;
                self.insert(&mut generations, key.clone(), entry.clone());
                entry
            }
        };
        drop(generations);
        let age = now.saturating_duration_since(entry.stored);
        if age < entry.ttl {
            let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            Some(Found::Fresh(entry.resolved, seconds))
        } else if age < entry.ttl + self.stale_max {
            Some(Found::Stale(entry.resolved))
        } else {
            None
        }
    }

    /// Keeps an answer, unless its time to live forbids it.
    pub(crate) fn store(&self, key: Key, resolved: Arc<Resolved>, now: Instant) {
        let ttl = resolved.ttl();
        if ttl > 0 {
            let entry = Entry { resolved, stored: now, ttl: Duration::from_secs(ttl.into()) };
            self.insert(&mut self.generations(), key, entry);
        }
    }

    /// How many answers are kept.
    pub(crate) fn len(&self) -> usize {
        let generations = self.generations();
        generations.younger.len() + generations.older.len()
    }

    fn insert(&self, generations: &mut Generations, key: Key, entry: Entry) {
        if generations.younger.len() >= self.entries_max {
            generations.older = std::mem::take(&mut generations.younger);
        }
        generations.older.remove(&key);
        generations.younger.insert(key, entry);
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;
    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect(text)
    }

    fn key(at: usize) -> Key {
        Key {
            name: (&name(&format!("n{at}.example."))).into(),
            kind: RecordType::A,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    fn positive(ttls: &[u32]) -> Arc<Resolved> {
        let record = |ttl: &u32| Record::from_rdata(name("a."), *ttl, RData::A(A::new(192, 0, 2, 1)));
        let answers = ttls.iter().map(record).collect();
        Arc::new(Resolved { code: ResponseCode::NoError, authentic: false, answers, authorities: Vec::new() })
    }

    fn negative(ttl: u32, minimum: u32) -> Arc<Resolved> {
        let soa = SOA::new(name("ns."), name("root."), 1, 2, 3, 4, minimum);
        Arc::new(Resolved {
            code: ResponseCode::NXDomain,
            authentic: false,
            answers: Vec::new(),
            authorities: vec![Record::from_rdata(name("example."), ttl, RData::SOA(soa))],
        })
    }

    #[test]
    fn answers_are_fresh_for_their_time_and_then_stale() {
        let start = Instant::now();
        let seconds = |seconds| start + Duration::from_secs(seconds);
        let cache = Cache::new(10, Duration::from_secs(100));
        for (resolved, ttl) in [
            (positive(&[30, 20, 60]), 20),
            (positive(&[u32::MAX]), u64::from(TTL_MAX)),
            (negative(300, 60), 60),
            (negative(5, 60), 5),
            (negative(u32::MAX, u32::MAX), u64::from(NEGATIVE_TTL_MAX)),
        ] {
            cache.store(key(1), resolved.clone(), start);
            let age = u32::try_from(ttl - 1).expect("short");
            assert!(matches!(cache.get(&key(1), seconds(ttl - 1)), Some(Found::Fresh(found, found_age))
                    if found == resolved && found_age == age));
            assert!(
                matches!(cache.get(&key(1), seconds(ttl)), Some(Found::Stale(found)) if found == resolved)
            );
            assert!(cache.get(&key(1), seconds(ttl + 100)).is_none());
        }
    }

    #[test]
    fn what_must_not_be_kept_is_not() {
        let now = Instant::now();
        let cache = Cache::new(10, Duration::from_secs(100));
        let without_soa = Resolved { authorities: Vec::new(), ..(*negative(1, 1)).clone() };
        for resolved in [positive(&[30, 0]), negative(300, 0), Arc::new(without_soa)] {
            cache.store(key(1), resolved, now);
            assert!(cache.get(&key(1), now).is_none());
        }
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_used() {
        let now = Instant::now();
        let cache = Cache::new(100, Duration::ZERO);
        for at in 0..1000 {
            cache.store(key(at), positive(&[60]), now);
            assert!(cache.get(&key(0), now).is_some(), "after {at}");
            assert!(cache.len() <= 101);
        }
        assert!(cache.get(&key(1), now).is_none());
        assert!(cache.get(&key(999), now).is_some());
    }
}
