//! What each client may ask.
//!
//! Pure. The rules of all networks are worked out ahead of time: the addresses are cut where any network begins or
//! ends, so that looking up a client is a binary search, cheap enough for the fast path.

use std::net::IpAddr;

use mesonet_dns_zone::{Name, NameError};
use thiserror::Error;

use crate::network::{Network, number};

/// What clients may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    /// Who is answered at all; everybody if empty. Others are refused.
    pub allow: Vec<Network>,
    /// For whom names outside the zones are asked of other servers. A server that does so for everybody is used to
    /// flood third parties.
    pub recursion: Vec<Network>,
    /// What answers from the zones say of that (RA): the truth if this is not set. Clients such as `host` pass over a
    /// server that offers no recursion, even where they ask for nothing but its own names.
    pub says_recursion: Option<bool>,
    /// Who may transfer whole zones.
    pub transfer: Vec<Network>,
    /// Clients that see some zones only. The first view with the client's network counts.
    pub views: Vec<View>,
    /// Answers over UDP per second to one network of clients and of one kind; `None` for any number.
    pub rate_max: Option<u32>,
    /// The name of this server for who asks (`id.server` and `hostname.bind` in class CHAOS, and NSID).
    pub identity: Option<String>,
}

impl Default for PolicyConfig {
    /// Everybody sees the zones, clients of local networks have other names asked.
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            recursion: Network::local(),
            says_recursion: None,
            transfer: Vec::new(),
            views: Vec::new(),
            rate_max: None,
            identity: None,
        }
    }
}

/// Clients that see some zones only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The clients.
    pub networks: Vec<Network>,
    /// The names below these are served to them, the others are as if they were in no zone.
    pub zones: Vec<String>,
}

/// The policy is wrong.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// A zone of a view is no domain name.
    #[error("'{zone}' in a view is no domain name")]
    Zone {
        /// The zone as given.
        zone: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// The server's name does not fit into a text record.
    #[error("the server's name has {length} octets, more than 255")]
    Identity {
        /// How long it is.
        length: usize,
    },
}

/// What a client may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Whether it is answered.
    pub(crate) is_served: bool,
    /// Whether names outside the zones are asked of other servers.
    pub(crate) recursion: bool,
    /// Whether it may transfer zones.
    pub(crate) transfer: bool,
    /// The view that it has, if not all zones.
    view: Option<usize>,
}

/// The rules, worked out.
#[derive(Debug)]
pub(crate) struct Policy {
    /// Where other rights begin, sorted; the first is 0.
    sections: Vec<(u128, Rights)>,
    /// The zones of each view.
    views: Vec<Vec<Name>>,
    /// Whether answers have to be counted, which the fast path does not.
    is_limited: bool,
    /// See [`PolicyConfig::says_recursion`].
    says_recursion: Option<bool>,
}

impl Policy {
    pub(crate) fn new(config: &PolicyConfig) -> Result<Self, PolicyError> {
        let zone = |zone: &String| {
            let name = Name::root().below(zone.trim_matches('.'));
            name.map_err(|source| PolicyError::Zone { zone: zone.clone(), source })
        };
        let views = config.views.iter().map(|view| view.zones.iter().map(zone).collect());
        let views = views.collect::<Result<Vec<Vec<Name>>, PolicyError>>()?;
        if let Some(length) = config.identity.as_ref().map(String::len).filter(|length| *length > 255) {
            return Err(PolicyError::Identity { length });
        }
        let of_views = config.views.iter().flat_map(|view| &view.networks);
        let networks = config.allow.iter().chain(&config.recursion).chain(&config.transfer).chain(of_views);
        let mut starts: Vec<u128> = networks.flat_map(Network::bounds).flatten().chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let mut sections: Vec<(u128, Rights)> =
            starts.into_iter().map(|start| (start, rights_at(config, start))).collect();
        sections.dedup_by_key(|(_, rights)| *rights);
        let (is_limited, says_recursion) = (config.rate_max.is_some(), config.says_recursion);
        Ok(Self { sections, views, is_limited, says_recursion })
    }

    /// What a client may ask.
    pub(crate) fn rights(&self, client: IpAddr) -> Rights {
        let number = number(client);
        let after = self.sections.partition_point(|(start, _)| *start <= number);
        // The first section begins at 0.
        self.sections[after.saturating_sub(1)].1
    }

    /// Whether a client with these rights is told of a name in the zones.
    pub(crate) fn shows(&self, rights: Rights, name: &Name) -> bool {
        let zones = rights.view.and_then(|view| self.views.get(view));
        zones.is_none_or(|zones| zones.iter().any(|zone| name.is_within(zone)))
    }

    /// Whether an answer from the zones says that other names are asked for, too. `is_true` is whether they are.
    pub(crate) fn says_recursion(&self, is_true: bool) -> bool {
        self.says_recursion.unwrap_or(is_true)
    }

    /// What every client may ask on the fast path, if that is the same for all.
    pub(crate) fn fast_for_all(&self) -> Option<FastRights> {
        match self.sections.as_slice() {
            [(_, rights)] => Some(self.fast_of(*rights)),
            _ => None,
        }
    }

    /// What a client may ask on the fast path.
    pub(crate) fn fast(&self, client: IpAddr) -> FastRights {
        self.fast_of(self.rights(client))
    }

    fn fast_of(&self, rights: Rights) -> FastRights {
        let is_answered = rights.is_served && rights.view.is_none() && !self.is_limited;
        FastRights { is_answered, recursion: self.says_recursion(rights.recursion) }
    }
}

/// What a client may ask on the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FastRights {
    /// Whether the fast path may answer it; if not, its queries are for the full path.
    pub(crate) is_answered: bool,
    /// Whether answers say that names outside the zones are asked of other servers.
    pub(crate) recursion: bool,
}

fn rights_at(config: &PolicyConfig, number: u128) -> Rights {
    let is_in = |networks: &[Network]| networks.iter().any(|network| network.holds(number));
    Rights {
        is_served: config.allow.is_empty() || is_in(&config.allow),
        recursion: is_in(&config.recursion),
        transfer: is_in(&config.transfer),
        view: config.views.iter().position(|view| is_in(&view.networks)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    fn name(text: &str) -> Name {
        Name::root().below(text).expect(text)
    }

    #[test]
    fn rights_follow_from_the_clients_network() {
        let config = PolicyConfig {
            allow: networks(&["10.0.0.0/8", "2001:db8::/32"]),
            recursion: networks(&["10.1.0.0/16", "10.2.3.4"]),
            transfer: networks(&["10.2.3.4"]),
            views: vec![
                View { networks: networks(&["10.1.2.0/24"]), zones: vec!["mesos".to_owned()] },
                View { networks: networks(&["10.1.0.0/16"]), zones: Vec::new() },
            ],
            ..PolicyConfig::default()
        };
        let policy = Policy::new(&config).expect("a policy");
        for (client, expected) in [
            ("10.0.0.0", (true, false, false, None)),
            ("10.255.255.255", (true, false, false, None)),
            ("11.0.0.0", (false, false, false, None)),
            ("9.255.255.255", (false, false, false, None)),
            ("2001:db8::1", (true, false, false, None)),
            ("2001:db9::", (false, false, false, None)),
            ("10.1.2.3", (true, true, false, Some(0))),
            ("10.1.3.0", (true, true, false, Some(1))),
            ("10.2.3.4", (true, true, true, None)),
            ("10.2.3.5", (true, false, false, None)),
        ] {
            let Rights { is_served, recursion, transfer, view } =
                policy.rights(client.parse().expect(client));
            assert_eq!((is_served, recursion, transfer, view), expected, "{client}");
        }
        let of = |client: &str| policy.rights(client.parse().expect(client));
        for (client, zone, expected) in [
            ("10.1.2.3", "leader.mesos", true),
            ("10.1.2.3", "x.l4lb.thisdcos.directory", false),
            ("10.1.3.3", "leader.mesos", false),
            ("10.3.0.0", "x.l4lb.thisdcos.directory", true),
        ] {
            assert_eq!(policy.shows(of(client), &name(zone)), expected, "{client} {zone}");
        }
        assert!(!policy.fast("10.1.2.3".parse().expect("address")).is_answered);
        assert!(policy.fast("10.3.0.0".parse().expect("address")).is_answered);
    }

    #[test]
    fn without_rules_the_fast_path_need_not_look() {
        let open = PolicyConfig { recursion: networks(&["::/0"]), ..PolicyConfig::default() };
        let expected = FastRights { is_answered: true, recursion: true };
        assert_eq!(Policy::new(&open).expect("a policy").fast_for_all(), Some(expected));
        let limited = PolicyConfig { rate_max: Some(1), ..open };
        let expected = FastRights { is_answered: false, recursion: true };
        assert_eq!(Policy::new(&limited).expect("a policy").fast_for_all(), Some(expected));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// The sections say the same as the rules.
        #[test]
        fn sections_are_the_rules(
            rules in proptest::collection::vec((any::<u32>(), 0..=32_u8, 0..3_u8), 0..8),
            clients in proptest::collection::vec(any::<u32>(), 1..20),
        ) {
            let mut config = PolicyConfig { recursion: Vec::new(), ..PolicyConfig::default() };
            for (address, length, rule) in &rules {
                let network = Network::new(IpAddr::V4((*address).into()), *length).expect("a network");
                match rule {
                    0 => config.allow.push(network),
                    1 => config.recursion.push(network),
                    _ => config.transfer.push(network),
                }
            }
            let policy = Policy::new(&config).expect("a policy");
            let ends = rules.iter().flat_map(|(address, ..)| [*address, address.wrapping_add(1)]);
            for client in clients.into_iter().chain(ends) {
                let client = IpAddr::V4(client.into());
                prop_assert_eq!(policy.rights(client), rights_at(&config, number(client)));
            }
        }
    }
}
