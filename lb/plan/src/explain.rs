//! Why a connection goes where it goes, by the code that sends it there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use mesonet_ebpf_abi::{Place, hash_slot, source_hash};
use mesonet_model::{Algorithm, ServicePolicy};

use crate::choice::{chances, choose_least};
use crate::{EndpointCount, EndpointId, MAGLEV_SLOTS, MaglevTable, RouteState, ServiceSpec};

/// Where a new connection of a client goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Every endpoint that may get it, with the chance in percent.
    pub chances: Vec<(EndpointId, f64)>,
    /// The endpoint that gets it, if that is certain.
    pub endpoint: Option<EndpointId>,
    /// Why, as a sentence.
    pub why: String,
}

/// What a data plane knows a client by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownBy {
    /// Its address.
    Address(IpAddr),
    /// Its network namespace: when a socket connects in the kernel, it has no address yet.
    Namespace,
}

/// Chooses as a data plane does, for a client that has no connection to the service yet. `count` says what connections to
/// an endpoint have come to.
pub fn explain(spec: &ServiceSpec, client: KnownBy, count: impl Fn(&EndpointId) -> EndpointCount) -> Choice {
    let ready: Vec<(&EndpointId, u32)> = spec
        .endpoints
        .iter()
        .filter(|(_, each)| each.state == RouteState::Ready)
        .map(|(id, each)| (id, each.weight))
        .collect();
    let weights: Vec<u32> = ready.iter().map(|(_, weight)| *weight).collect();
    let by_weight = chances(&weights);
    let possible: Vec<usize> = (0..ready.len()).filter(|at| by_weight[*at] > 0.0).collect();
    let (possible, why) = match (&possible[..], spec.policy.algorithm, client) {
        ([], ..) => (possible, "No endpoint takes new connections; they are refused.".to_owned()),
        ([_], ..) => (possible, "It is the only endpoint that gets connections.".to_owned()),
        (_, Algorithm::WeightedRandom, _) => {
            (possible, "One is drawn for each connection, by weight.".to_owned())
        }
        (_, Algorithm::Maglev, KnownBy::Address(client)) => by_address(&ready, client),
        (_, Algorithm::Maglev, KnownBy::Namespace) => {
            let why = "The kernel's number of the client's network namespace decides: all its connections go to one.";
            (possible, why.to_owned())
        }
        (_, Algorithm::LeastConnections, KnownBy::Address(_)) => by_load(&ready, count),
        (_, Algorithm::LeastConnections, KnownBy::Namespace) => {
            let why = "Two are drawn by weight; the one with fewer open connections for its weight is taken.";
            (possible, why.to_owned())
        }
    };
    let total: f64 = possible.iter().map(|at| by_weight[*at]).sum();
    let chances: Vec<(EndpointId, f64)> =
        possible.iter().map(|at| (ready[*at].0.clone(), by_weight[*at] / total * 100.0)).collect();
    let endpoint = match &chances[..] {
        [(only, _)] => Some(only.clone()),
        _ => None,
    };
    Choice { chances, endpoint, why: format!("{why}{}", stays(&spec.policy)) }
}

fn by_address(ready: &[(&EndpointId, u32)], client: IpAddr) -> (Vec<usize>, String) {
    let endpoints: Vec<_> = ready.iter().map(|(id, weight)| (id.address, *weight)).collect();
    let hash = source_hash(&Place::from(std::net::SocketAddr::new(client, 0)));
    let slot = hash_slot(hash, MAGLEV_SLOTS);
    let why = format!("The client's address leads to position {slot} of {MAGLEV_SLOTS}, which is its.");
    (MaglevTable::new(&endpoints).choose(hash).into_iter().collect(), why)
}

fn by_load(
    ready: &[(&EndpointId, u32)],
    count: impl Fn(&EndpointId) -> EndpointCount,
) -> (Vec<usize>, String) {
    let loads = ready.iter().map(|(id, weight)| Some((*weight, count(id).active)));
    // One random number for each candidate to begin with: several are equal if they are chosen in turn.
    let begin = |first: usize| u64::MAX / ready.len() as u64 * first as u64 + ready.len() as u64;
    let chosen: BTreeSet<usize> =
        (0..ready.len()).filter_map(|first| choose_least(loads.clone(), begin(first))).collect();
    let why = match chosen.len() {
        1 => "It has the fewest open connections of this node for its weight.",
        _ => "They have the fewest open connections of this node for their weights, and take turns.",
    };
    (chosen.into_iter().collect(), why.to_owned())
}

fn stays(policy: &ServicePolicy) -> String {
    match policy.affinity {
        Some(time) => format!(
            " A client that had a connection within the last {} s stays with its endpoint.",
            time.as_secs()
        ),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use mesonet_model::{FrameworkId, TaskId, TaskKey};

    use super::*;
    use crate::EndpointSpec;

    fn id(number: u16) -> EndpointId {
        let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(format!("t{number}")));
        EndpointId { task, address: ([10, 0, 0, 1], number).into() }
    }

    fn spec(algorithm: Algorithm, endpoints: &[(u16, RouteState, u32)]) -> ServiceSpec {
        let endpoints = endpoints.iter();
        ServiceSpec {
            endpoints: endpoints
                .map(|(number, state, weight)| (id(*number), EndpointSpec { state: *state, weight: *weight }))
                .collect(),
            policy: ServicePolicy { algorithm, ..ServicePolicy::default() },
            ..ServiceSpec::default()
        }
    }

    fn choice(spec: &ServiceSpec, client: [u8; 4]) -> Choice {
        let active =
            |id: &EndpointId| EndpointCount { active: id.address.port().into(), ..Default::default() };
        explain(spec, KnownBy::Address(client.into()), active)
    }

    #[test]
    fn a_draw_has_chances_and_the_rest_is_certain() {
        use RouteState::{Draining, Ready};
        let random = choice(
            &spec(Algorithm::WeightedRandom, &[(1, Ready, 100), (2, Ready, 300), (3, Draining, 1)]),
            [1; 4],
        );
        assert_eq!(random.chances, [(id(1), 25.0), (id(2), 75.0)]);
        assert_eq!(random.endpoint, None);
        let only = choice(&spec(Algorithm::WeightedRandom, &[(1, Ready, 0), (2, Ready, 7)]), [1; 4]);
        assert_eq!((only.endpoint, only.chances), (Some(id(2)), vec![(id(2), 100.0)]));
        let none = choice(&spec(Algorithm::Maglev, &[(3, Draining, 1)]), [1; 4]);
        assert_eq!((none.endpoint, none.chances), (None, vec![]));
        let least = choice(
            &spec(Algorithm::LeastConnections, &[(10, Ready, 100), (16, Ready, 200), (9, Ready, 50)]),
            [1; 4],
        );
        assert_eq!(least.endpoint, Some(id(16)), "eight for a weight of one hundred: {}", least.why);
    }

    #[test]
    fn a_client_of_maglev_always_goes_to_the_same_endpoint() {
        let spec = spec(Algorithm::Maglev, &[(1, RouteState::Ready, 100), (2, RouteState::Ready, 100)]);
        let first = choice(&spec, [10, 1, 2, 3]);
        assert_eq!(choice(&spec, [10, 1, 2, 3]), first);
        let mut seen: Vec<_> = (0..50).filter_map(|last| choice(&spec, [10, 1, 2, last]).endpoint).collect();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 2, "clients are spread");
    }
}
