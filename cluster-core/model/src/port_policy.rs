//! The labels of a port that say how connections to it are balanced.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::{Algorithm, Locality, ServicePolicy, Weighing};

/// What the labels of one port say. What they do not mention is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortPolicy {
    /// For how long connections may go on after the port's endpoints are withdrawn.
    pub drain: Option<Duration>,
    /// The share of an endpoint beside the others of its service.
    pub share: Option<u32>,
    /// In which time a new endpoint gets to its full weight.
    pub slow_start: Option<Duration>,
    /// What it asks of the service as a whole.
    pub wish: ServiceWish,
}

/// What one app asks of a service that it may share with others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceWish {
    algorithm: Option<Algorithm>,
    affinity: Option<Duration>,
    locality: Option<Locality>,
    spill_connections: Option<u32>,
    ejected_max_percent: Option<u8>,
    panic_percent: Option<u8>,
    proxy_protocol: Option<bool>,
    direct_return: Option<bool>,
}

/// Why a label has no effect.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyLabelError {
    /// Its name is none that means anything.
    #[error("label {label} is unknown: expected one of {}", LABELS.join(", "))]
    Unknown {
        /// The label's name.
        label: String,
    },
    /// Its value is not what it should be.
    #[error("label {label}={value} is wrong: expected {expected}")]
    Value {
        /// The label's name.
        label: &'static str,
        /// The label's value.
        value: String,
        /// What it should be, for people.
        expected: &'static str,
    },
}

/// Share of an endpoint whose app does not say.
pub const DEFAULT_SHARE: u32 = 100;

/// What the names of all labels begin with.
const PREFIX: &str = "MESONET_LB_";

const ALGORITHM: &str = "MESONET_LB_ALGORITHM";
const AFFINITY: &str = "MESONET_LB_AFFINITY_SECONDS";
const LOCALITY: &str = "MESONET_LB_LOCALITY";
const SPILL: &str = "MESONET_LB_SPILL_CONNECTIONS";
const SLOW_START: &str = "MESONET_LB_SLOW_START_SECONDS";
const WEIGHT: &str = "MESONET_LB_WEIGHT";
const EJECTED: &str = "MESONET_LB_EJECTED_MAX_PERCENT";
const PANIC: &str = "MESONET_LB_PANIC_PERCENT";
const PROXY_PROTOCOL: &str = "MESONET_LB_PROXY_PROTOCOL";
const DIRECT_RETURN: &str = "MESONET_LB_DIRECT_RETURN";
const DRAIN: &str = "MESONET_LB_DRAIN_SECONDS";

/// Every label, in the order of the documentation.
const LABELS: [&str; 11] = [
    ALGORITHM,
    AFFINITY,
    LOCALITY,
    SPILL,
    SLOW_START,
    WEIGHT,
    EJECTED,
    PANIC,
    PROXY_PROTOCOL,
    DIRECT_RETURN,
    DRAIN,
];

/// The most that a drain may take: it holds the task's resources, and a deployment waits for it.
const DRAIN_SECONDS_MAX: u64 = 3600;

/// The most that a slow start may take.
const SLOW_START_SECONDS_MAX: u64 = 3600;

/// The longest affinity; each client that is remembered takes memory.
const AFFINITY_SECONDS_MAX: u64 = 86_400;

/// A hundred times the default, so that sums of all endpoints of a cluster fit.
const WEIGHT_MAX: u64 = 10_000;

/// The most open connections per endpoint before others join.
const SPILL_MAX: u64 = 1_000_000;

// === impl PolicyLabelError ===

impl PolicyLabelError {
    /// The label's name.
    pub fn label(&self) -> &str {
        match self {
            Self::Unknown { label } => label,
            Self::Value { label, .. } => label,
        }
    }
}

// === impl PortPolicy ===

impl PortPolicy {
    /// Reads the labels of a port. Those that are wrong have no effect and are reported; labels that do not begin with
    /// `MESONET_LB_` are none of ours.
    pub fn parse(labels: &BTreeMap<String, String>) -> (Self, Vec<PolicyLabelError>) {
        let mut policy = Self::default();
        let mut errors = Vec::new();
        let ours = labels.range(PREFIX.to_owned()..).take_while(|(label, _)| label.starts_with(PREFIX));
        for (label, value) in ours {
            if let Err(error) = policy.read(label, value) {
                errors.push(error);
            }
        }
        (policy, errors)
    }

    fn read(&mut self, label: &str, value: &str) -> Result<(), PolicyLabelError> {
        let wish = &mut self.wish;
        match label {
            ALGORITHM => wish.algorithm = Some(word(ALGORITHM, value, &Algorithm::ALL, Algorithm::as_str)?),
            LOCALITY => wish.locality = Some(word(LOCALITY, value, &Locality::ALL, Locality::as_str)?),
            PROXY_PROTOCOL => wish.proxy_protocol = Some(flag(PROXY_PROTOCOL, value)?),
            DIRECT_RETURN => wish.direct_return = Some(flag(DIRECT_RETURN, value)?),
            AFFINITY => {
                let seconds =
                    number(AFFINITY, value, AFFINITY_SECONDS_MAX, "seconds from 0 (none) to 86400")?;
                wish.affinity = Some(Duration::from_secs(seconds));
            }
            SPILL => {
                let most = number(SPILL, value, SPILL_MAX, "a number of connections from 0 to 1000000")?;
                wish.spill_connections = u32::try_from(most).ok();
            }
            EJECTED => wish.ejected_max_percent = Some(percent(EJECTED, value)?),
            PANIC => wish.panic_percent = Some(percent(PANIC, value)?),
            SLOW_START => {
                let seconds = number(SLOW_START, value, SLOW_START_SECONDS_MAX, "seconds from 0 to 3600")?;
                self.slow_start = Some(Duration::from_secs(seconds)).filter(|time| !time.is_zero());
            }
            WEIGHT => {
                let share =
                    number(WEIGHT, value, WEIGHT_MAX, "a number from 0 to 10000 (100 is the default)")?;
                self.share = u32::try_from(share).ok();
            }
            DRAIN => {
                let seconds = number(DRAIN, value, DRAIN_SECONDS_MAX, "seconds from 0 to 3600")?;
                self.drain = Some(Duration::from_secs(seconds));
            }
            _ => return Err(PolicyLabelError::Unknown { label: label.to_owned() }),
        }
        Ok(())
    }
}

// === impl ServiceWish ===

impl ServiceWish {
    /// What two apps behind one service ask together. The order does not matter: of each setting that both mention, the
    /// greater value wins, but the smaller one of how much may be ejected and of how many connections stay near, and
    /// direct return needs both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            algorithm: self.algorithm.max(other.algorithm),
            affinity: self.affinity.max(other.affinity),
            locality: self.locality.max(other.locality),
            spill_connections: least(self.spill_connections, other.spill_connections),
            ejected_max_percent: least(self.ejected_max_percent, other.ejected_max_percent),
            panic_percent: self.panic_percent.max(other.panic_percent),
            proxy_protocol: self.proxy_protocol.max(other.proxy_protocol),
            direct_return: Some(self.direct_return == Some(true) && other.direct_return == Some(true)),
        }
    }

    /// What a data plane has to know, with defaults for what nobody asked.
    pub fn policy(&self) -> ServicePolicy {
        ServicePolicy {
            algorithm: self.algorithm.unwrap_or_default(),
            affinity: self.affinity.filter(|time| !time.is_zero()),
            proxy_protocol: self.proxy_protocol.unwrap_or_default(),
            direct_return: self.direct_return.unwrap_or_default(),
        }
    }

    /// What weights are computed from, with defaults for what nobody asked.
    pub fn weighing(&self) -> Weighing {
        let default = Weighing::default();
        Weighing {
            locality: self.locality.unwrap_or(default.locality),
            spill_connections: self.spill_connections.unwrap_or(default.spill_connections),
            ejected_max_percent: self.ejected_max_percent.unwrap_or(default.ejected_max_percent),
            panic_percent: self.panic_percent.unwrap_or(default.panic_percent),
        }
    }
}

fn least<T: Ord>(first: Option<T>, second: Option<T>) -> Option<T> {
    match (first, second) {
        (Some(first), Some(second)) => Some(first.min(second)),
        (first, second) => first.or(second),
    }
}

fn word<T: Copy>(
    label: &'static str,
    value: &str,
    all: &[T],
    name: impl Fn(T) -> &'static str,
) -> Result<T, PolicyLabelError> {
    let expected = match label {
        ALGORITHM => "weighted-random, least-connections or maglev",
        _ => "node, zone or off",
    };
    let found = all.iter().copied().find(|each| name(*each) == value);
    found.ok_or_else(|| PolicyLabelError::Value { label, value: value.to_owned(), expected })
}

fn flag(label: &'static str, value: &str) -> Result<bool, PolicyLabelError> {
    value.parse().map_err(|_| PolicyLabelError::Value {
        label,
        value: value.to_owned(),
        expected: "true or false",
    })
}

fn percent(label: &'static str, value: &str) -> Result<u8, PolicyLabelError> {
    // Not above 100, so that it fits.
    Ok(number(label, value, 100, "a percentage from 0 to 100")? as u8)
}

fn number(
    label: &'static str,
    value: &str,
    most: u64,
    expected: &'static str,
) -> Result<u64, PolicyLabelError> {
    let is_plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let number = value.parse().ok().filter(|number| is_plain && *number <= most);
    number.ok_or_else(|| PolicyLabelError::Value { label, value: value.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(labels: &[(&str, &str)]) -> (PortPolicy, Vec<String>) {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (policy, errors) = PortPolicy::parse(&labels);
        (policy, errors.iter().map(ToString::to_string).collect())
    }

    fn wish(labels: &[(&str, &str)]) -> ServiceWish {
        let (policy, errors) = parse(labels);
        assert_eq!(errors, Vec::<String>::new());
        policy.wish
    }

    #[test]
    fn every_label_is_read() {
        let (policy, errors) = parse(&[
            ("MESONET_LB_ALGORITHM", "maglev"),
            ("MESONET_LB_AFFINITY_SECONDS", "600"),
            ("MESONET_LB_LOCALITY", "zone"),
            ("MESONET_LB_SPILL_CONNECTIONS", "7"),
            ("MESONET_LB_SLOW_START_SECONDS", "30"),
            ("MESONET_LB_WEIGHT", "5"),
            ("MESONET_LB_EJECTED_MAX_PERCENT", "10"),
            ("MESONET_LB_PANIC_PERCENT", "0"),
            ("MESONET_LB_PROXY_PROTOCOL", "true"),
            ("MESONET_LB_DIRECT_RETURN", "true"),
            ("MESONET_LB_DRAIN_SECONDS", "0"),
            ("VIP_0", "/web:80"),
        ]);
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(policy.drain, Some(Duration::ZERO));
        assert_eq!(policy.share, Some(5));
        assert_eq!(policy.slow_start, Some(Duration::from_secs(30)));
        assert_eq!(
            policy.wish.policy(),
            ServicePolicy {
                algorithm: Algorithm::Maglev,
                affinity: Some(Duration::from_secs(600)),
                proxy_protocol: true,
                direct_return: true,
            }
        );
        assert_eq!(
            policy.wish.weighing(),
            Weighing {
                locality: Locality::Zone,
                spill_connections: 7,
                ejected_max_percent: 10,
                panic_percent: 0
            }
        );
    }

    #[test]
    fn no_labels_are_the_defaults() {
        let wish = wish(&[]);
        assert_eq!(wish.policy(), ServicePolicy::default());
        assert_eq!(wish.weighing(), Weighing::default());
    }

    #[test]
    fn wrong_labels_say_what_was_expected() {
        for (label, value, expected) in [
            (
                "MESONET_LB_ALGORITHM",
                "rr",
                "label MESONET_LB_ALGORITHM=rr is wrong: expected weighted-random, least-connections or maglev",
            ),
            (
                "MESONET_LB_LOCALITY",
                "host",
                "label MESONET_LB_LOCALITY=host is wrong: expected node, zone or off",
            ),
            (
                "MESONET_LB_PROXY_PROTOCOL",
                "v2",
                "label MESONET_LB_PROXY_PROTOCOL=v2 is wrong: expected true or false",
            ),
            (
                "MESONET_LB_PANIC_PERCENT",
                "101",
                "label MESONET_LB_PANIC_PERCENT=101 is wrong: expected a percentage from 0 to 100",
            ),
            (
                "MESONET_LB_WEIGHT",
                "-1",
                "label MESONET_LB_WEIGHT=-1 is wrong: expected a number from 0 to 10000 (100 is the default)",
            ),
            (
                "MESONET_LB_DRAIN_SECONDS",
                "3601",
                "label MESONET_LB_DRAIN_SECONDS=3601 is wrong: expected seconds from 0 to 3600",
            ),
        ] {
            assert_eq!(parse(&[(label, value)]), (PortPolicy::default(), vec![expected.to_owned()]));
        }
        for value in ["", "+5", "5s", "0x5", "18446744073709551616"] {
            assert_eq!(parse(&[("MESONET_LB_AFFINITY_SECONDS", value)]).1.len(), 1, "'{value}'");
        }
    }

    #[test]
    fn unknown_labels_are_named_beside_those_that_exist() {
        let (policy, errors) = parse(&[("MESONET_LB_ALGORYTHM", "maglev"), ("MESONET_LB_WEIGHT", "3")]);
        assert_eq!(policy.share, Some(3), "the others count");
        let [error] = &errors[..] else { panic!("one error: {errors:?}") };
        assert!(
            error
                .starts_with("label MESONET_LB_ALGORYTHM is unknown: expected one of MESONET_LB_ALGORITHM, ")
        );
    }

    #[test]
    fn apps_that_disagree_agree_in_any_order() {
        let first = wish(&[
            ("MESONET_LB_ALGORITHM", "least-connections"),
            ("MESONET_LB_EJECTED_MAX_PERCENT", "10"),
            ("MESONET_LB_DIRECT_RETURN", "true"),
        ]);
        let second = wish(&[
            ("MESONET_LB_ALGORITHM", "maglev"),
            ("MESONET_LB_EJECTED_MAX_PERCENT", "90"),
            ("MESONET_LB_AFFINITY_SECONDS", "5"),
            ("MESONET_LB_PROXY_PROTOCOL", "true"),
        ]);
        assert_eq!(first.and(second), second.and(first));
        let both = first.and(second);
        assert_eq!(
            both.policy(),
            ServicePolicy {
                algorithm: Algorithm::Maglev,
                affinity: Some(Duration::from_secs(5)),
                proxy_protocol: true,
                direct_return: false,
            }
        );
        assert_eq!(both.weighing().ejected_max_percent, 10);
        assert_eq!(first.and(first).policy(), first.policy(), "one app alone");
    }
}
