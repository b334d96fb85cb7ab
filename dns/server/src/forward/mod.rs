//! Names outside the zones: asked of upstream servers, kept, and served while they may be.
//!
//! Equal questions are asked once at a time, whoever waits for them; the task that asks goes on when its askers are
//! gone, so that its answer is kept. That also ends loops: a question that comes back from an upstream server waits for
//! itself until the deadline. An answer that is too old is used if no new one comes in time (RFC 8767), and a failure
//! is remembered for a second (RFC 9520).

mod cache;
mod pool;
mod routes;
mod search;
mod standing;
mod upstream;
mod validation;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::rr::{LowerName, Name};
use mesonet_dns_zone::NameError;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use self::cache::{Cache, Found};
use self::pool::Pool;
use self::routes::Routes;
use self::search::SearchList;
use self::upstream::Upstream;
use self::validation::Resolver;
use crate::metrics::{CacheResult, ForwardMetrics};

pub(crate) use self::cache::{Key, Resolved};

/// Questions that are on their way to upstream servers at a time. Each takes a task, a socket and some KiB; queries for
/// others become what queries beyond `queries_max` do, because upstream servers that are so far behind will not answer
/// them either.
const FETCHES_MAX: usize = 512;

/// Answers of more octets are not kept, so that the cache's entries bound its memory.
const KEPT_OCTETS_MAX: usize = 8_192;

/// How long a client waits for a new answer when an old one is there (RFC 8767 §5).
const STALE_AFTER: Duration = Duration::from_millis(1_800);

/// After a failure, so long the old answer is used without asking again (RFC 8767 §5).
const STALE_RECHECK: Duration = Duration::from_secs(30);

/// After a failure with no old answer, so long it is told without asking again (RFC 9520 §3.2 wants at least a second).
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// Time to live of an answer that is too old (RFC 8767 §4).
const STALE_TTL: u32 = 30;

/// Failures that are remembered at a time; beyond that the oldest are asked again.
const FAILURES_MAX: usize = 4_096;

/// How names outside the zones are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardConfig {
    /// The servers for every name that no forward zone has. Without any, such names are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Servers for the names below others, without dots at their ends. The longest match counts.
    pub zones: BTreeMap<String, Vec<SocketAddr>>,
    /// Whether the signatures of what `upstreams` say are checked. Forward zones are private, so that no chain of
    /// trust leads there: their answers are not.
    pub validate: bool,
    /// How many answers are kept; 0 keeps none.
    pub cache_entries: usize,
    /// For how long an answer that is too old is used when there is no new one.
    pub stale: Duration,
    /// How many queries may wait for upstream servers at a time. Names of the zones are answered without waiting, so
    /// that they are never in the way of each other.
    pub queries_max: usize,
    /// What becomes of queries beyond that.
    pub overload: Overload,
    /// The search list of the clients, if a question that exists because of it only is to be answered with what the
    /// client looks for. Each has to be one of the zones or below one.
    pub search: Vec<String>,
}

/// What becomes of queries that are too many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overload {
    /// They are refused.
    #[default]
    Refuse,
    /// Those over UDP get no answer, so that their clients wait before they ask again; the others are refused.
    Drop,
}

impl Default for ForwardConfig {
    /// Nothing is forwarded. The cache is worth some MiB; a day is what RFC 8767 §5 suggests at least.
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            zones: BTreeMap::new(),
            validate: false,
            cache_entries: 20_000,
            stale: Duration::from_secs(86_400),
            queries_max: 4_096,
            overload: Overload::Refuse,
            search: Vec::new(),
        }
    }
}

/// The settings of forwarding are wrong.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// A forward zone, or a domain of the search list, is no domain name.
    #[error("'{zone}' is no domain name")]
    Zone {
        /// The zone as given.
        zone: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// A forward zone has no servers.
    #[error("forward zone '{zone}' has no server")]
    NoServer {
        /// The zone as given.
        zone: String,
    },
    /// Forwarding to the server itself would go round for ever.
    #[error("upstream server {address} is this server itself")]
    Loop {
        /// The upstream server.
        address: SocketAddr,
    },
}

/// There is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No upstream server answered.
    Unreachable,
    /// The signatures are wrong.
    Bogus,
    /// Too many questions are on their way.
    Busy,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) resolved: Arc<Resolved>,
    pub(crate) age: Age,
}

/// How old an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// So many seconds, and fresh.
    Seconds(u32),
    /// Too old.
    Stale,
}

impl Age {
    /// What is left of a record's time to live.
    pub(crate) fn ttl_of(self, ttl: u32) -> u32 {
        match self {
            Self::Seconds(age) => ttl.saturating_sub(age),
            Self::Stale => ttl.min(STALE_TTL),
        }
    }
}

type Fetched = Result<Arc<Resolved>, Failure>;
type Fetching = watch::Receiver<Option<Fetched>>;

/// Resolves names outside the zones.
#[derive(Debug)]
pub(crate) struct Forwarder {
    routes: Routes,
    cache: Cache,
    fetching: Mutex<HashMap<Key, Fetching>>,
    failures: Mutex<HashMap<Key, (Failure, Instant)>>,
    places: Arc<Semaphore>,
    overload: Overload,
    search: SearchList,
    metrics: ForwardMetrics,
}

impl Forwarder {
    /// Nothing if the settings name no upstream server.
    pub(crate) fn new(config: &ForwardConfig, metrics: ForwardMetrics) -> Result<Option<Self>, ForwardError> {
        if config.upstreams.is_empty() && config.zones.is_empty() {
            return Ok(None);
        }
        let mut known: BTreeMap<SocketAddr, Arc<Upstream>> = BTreeMap::new();
        let mut pool = |addresses: &[SocketAddr]| {
            let upstream = |address: &SocketAddr| {
                known
                    .entry(*address)
                    .or_insert_with(|| Arc::new(Upstream::new(*address, metrics.upstream(*address))))
                    .clone()
            };
            Pool::new(addresses.iter().map(upstream).collect())
        };
        let mut zones = Vec::new();
        for (zone, addresses) in &config.zones {
            if addresses.is_empty() {
                return Err(ForwardError::NoServer { zone: zone.clone() });
            }
            zones.push((zone_name(zone)?, Resolver::new(pool(addresses), false)));
        }
        let search = config.search.iter().map(|domain| domain_name(domain));
        let search = search.collect::<Result<Vec<_>, ForwardError>>()?;
        let others =
            (!config.upstreams.is_empty()).then(|| Resolver::new(pool(&config.upstreams), config.validate));
        Ok(Some(Self {
            routes: Routes::new(zones, others),
            cache: Cache::new(config.cache_entries, config.stale),
            fetching: Mutex::default(),
            failures: Mutex::default(),
            places: Arc::new(Semaphore::new(config.queries_max.min(Semaphore::MAX_PERMITS))),
            overload: config.overload,
            search: SearchList::new(search),
            metrics,
        }))
    }

    /// Whether there are upstream servers for a name.
    pub(crate) fn serves(&self, name: &Name) -> bool {
        self.routes.of(&name.into()).is_some()
    }

    /// A place for a query that waits; nothing if there are too many.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.places.clone().try_acquire_owned().ok();
        if place.is_none() {
            self.metrics.shed();
        }
        place
    }

    /// The search list of the clients.
    pub(crate) fn search(&self) -> &SearchList {
        &self.search
    }

    /// What becomes of queries without a place.
    pub(crate) fn overload(&self) -> Overload {
        self.overload
    }

    /// Answers from what is kept, if that needs no waiting.
    pub(crate) fn kept(&self, key: &Key) -> Option<Reply> {
        match self.cache.get(key, Instant::now()) {
            Some(Found::Fresh(resolved, age)) => {
                self.metrics.looked_up(CacheResult::Hit);
                Some(Reply { resolved, age: Age::Seconds(age) })
            }
            Some(Found::Stale(_)) | None => None,
        }
    }

    /// Answers a question that [`Forwarder::kept`] has no answer to.
    pub(crate) async fn resolve(self: &Arc<Self>, key: &Key) -> Result<Reply, Failure> {
        let now = Instant::now();
        let stale = match self.cache.get(key, now) {
            Some(Found::Fresh(resolved, age)) => return Ok(Reply { resolved, age: Age::Seconds(age) }),
            Some(Found::Stale(resolved)) => Some(Reply { resolved, age: Age::Stale }),
            None => None,
        };
        let failed = self.failure_of(key, now);
        let Some(stale) = stale else {
            self.metrics.looked_up(CacheResult::Miss);
            return match failed {
                Some((failure, age)) if age < FAILURE_KEPT => Err(failure),
                _ => self.fetched(key).await,
            };
        };
        let is_hopeless = failed.is_some_and(|(_, age)| age < STALE_RECHECK);
        let fresh = if is_hopeless {
            None
        } else {
            tokio::time::timeout(STALE_AFTER, self.fetched(key)).await.ok().and_then(Result::ok)
        };
        if let Some(fresh) = fresh {
            self.metrics.looked_up(CacheResult::Miss);
            return Ok(fresh);
        }
        self.metrics.looked_up(CacheResult::Stale);
        Ok(stale)
    }

    async fn fetched(self: &Arc<Self>, key: &Key) -> Result<Reply, Failure> {
        let mut fetching = self.fetch(key).ok_or(Failure::Busy)?;
        // The sender is only gone before it has sent if the task was ended with the process.
        let fetched = fetching.wait_for(Option::is_some).await.map_err(|_| Failure::Unreachable)?.clone();
        let resolved = fetched.unwrap_or(Err(Failure::Unreachable))?;
        Ok(Reply { resolved, age: Age::Seconds(0) })
    }

    /// Asks, unless the same is being asked. Nothing if too much is being asked.
    fn fetch(self: &Arc<Self>, key: &Key) -> Option<Fetching> {
        let mut running = self.fetching();
        if let Some(fetching) = running.get(key) {
            self.metrics.coalesced();
            return Some(fetching.clone());
        }
        if running.len() >= FETCHES_MAX {
            self.metrics.shed();
            return None;
        }
        let (done, fetching) = watch::channel(None);
        running.insert(key.clone(), fetching.clone());
        drop(running);
        let task = FetchTask { forwarder: self.clone(), key: key.clone() };
        tokio::spawn(async move {
            let fetched = task.run().await;
            drop(task);
            done.send_replace(Some(fetched));
        });
        Some(fetching)
    }

    async fn ask(&self, key: &Key) -> Fetched {
        let resolver = self.routes.of(&key.name).ok_or(Failure::Unreachable)?;
        match resolver.ask(key).await {
            Ok((resolved, octets)) => {
                let resolved = Arc::new(resolved);
                self.failures().remove(key);
                if octets <= KEPT_OCTETS_MAX {
                    self.cache.store(key.clone(), resolved.clone(), Instant::now());
                    self.metrics.cached(self.cache.len());
                }
                Ok(resolved)
            }
            Err(failure) => {
                self.remember(key, failure);
                Err(failure)
            }
        }
    }

    fn remember(&self, key: &Key, failure: Failure) {
        let now = Instant::now();
        let mut failures = self.failures();
        if failures.len() >= FAILURES_MAX {
            failures.retain(|_, (_, at)| now.saturating_duration_since(*at) < FAILURE_KEPT);
        }
        if failures.len() < FAILURES_MAX {
            failures.insert(key.clone(), (failure, now));
        }
    }

    fn failure_of(&self, key: &Key, now: Instant) -> Option<(Failure, Duration)> {
        self.failures().get(key).map(|(failure, at)| (*failure, now.saturating_duration_since(*at)))
    }

    fn fetching(&self) -> MutexGuard<'_, HashMap<Key, Fetching>> {
        self.fetching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<Key, (Failure, Instant)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question on its way. However its task ends, the question can be asked again.
struct FetchTask {
    forwarder: Arc<Forwarder>,
    key: Key,
}

impl FetchTask {
    async fn run(&self) -> Fetched {
        self.forwarder.ask(&self.key).await
    }
}

impl Drop for FetchTask {
    fn drop(&mut self) {
        self.forwarder.fetching().remove(&self.key);
    }
}

fn zone_name(zone: &str) -> Result<LowerName, ForwardError> {
    let name = crate::wire::name(&domain_name(zone)?);
    let error = || ForwardError::Zone { zone: zone.to_owned(), source: NameError::NameTooLong };
    Ok(LowerName::from(name.ok_or_else(error)?))
}

fn domain_name(domain: &str) -> Result<mesonet_dns_zone::Name, ForwardError> {
    let name = mesonet_dns_zone::Name::root().below(domain.trim_matches('.'));
    name.map_err(|source| ForwardError::Zone { zone: domain.to_owned(), source })
}
