use std::collections::BTreeMap;

use mesonet_model::{Algorithm, FrameworkId, TaskId, TaskKey};
use proptest::prelude::*;

use super::*;

fn key(name: &str) -> ServiceKey {
    format!("tcp/{name}@marathon:80").parse().expect(name)
}

fn endpoint(number: u8) -> EndpointId {
    let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(format!("t{number}")));
    EndpointId { task, address: SocketAddr::from(([127, 0, 0, 1], 31000 + u16::from(number))) }
}

fn vip(number: u8) -> SocketAddr {
    SocketAddr::from(([127, 11, 0, number], 80))
}

fn service(listeners: &[u8], endpoints: &[(u8, RouteState, u32)]) -> ServiceSpec {
    let spec = |&(number, state, weight): &_| (endpoint(number), EndpointSpec { state, weight });
    ServiceSpec {
        listeners: listeners.iter().map(|number| vip(*number)).collect(),
        endpoints: endpoints.iter().map(spec).collect(),
        policy: ServicePolicy::default(),
    }
}

fn table(services: &[(&str, ServiceSpec)]) -> RouteTable {
    let mut table = RouteTable::default();
    for (name, spec) in services {
        table.set(key(name), spec.clone());
    }
    table
}

fn all_keys(a: &RouteTable, b: &RouteTable) -> BTreeSet<ServiceKey> {
    a.services().chain(b.services()).map(|(key, _)| key.clone()).collect()
}

/// A plan as one short word per operation.
fn words(desired: &RouteTable, actual: &RouteTable) -> Vec<String> {
    let word = |op: &Op| match op {
        Op::AddEndpoint { endpoint, .. } => format!("add {}", endpoint.task.task),
        Op::SetEndpoint { endpoint, spec, .. } => {
            format!("{} {} {}", spec.state.as_str(), endpoint.task.task, spec.weight)
        }
        Op::RemoveEndpoint { endpoint, .. } => format!("remove {}", endpoint.task.task),
        Op::SetPolicy { policy, .. } => format!("policy {}", policy.algorithm.as_str()),
        Op::OpenListener { address, .. } => format!("open {}", address.ip()),
        Op::CloseListener { address, .. } => format!("close {}", address.ip()),
    };
    plan(&all_keys(desired, actual), desired, actual).iter().map(word).collect()
}

use RouteState::{Draining, Ready};

#[test]
fn a_new_service_listens_when_its_endpoints_are_there() {
    let desired = table(&[("web", service(&[1], &[(1, Ready, 1), (2, Ready, 1)]))]);
    assert_eq!(words(&desired, &RouteTable::default()), ["add t1", "add t2", "open 127.11.0.1"]);
}

#[test]
fn a_service_that_goes_stops_listening_before_its_endpoints_go() {
    let actual = table(&[("web", service(&[1], &[(1, Ready, 1)]))]);
    assert_eq!(words(&RouteTable::default(), &actual), ["close 127.11.0.1", "remove t1"]);
}

#[test]
fn successors_come_before_predecessors_go_and_the_listener_stays() {
    let actual = table(&[("web", service(&[1], &[(1, Ready, 1), (2, Ready, 1)]))]);
    let desired = table(&[("web", service(&[1], &[(2, Draining, 1), (3, Ready, 1)]))]);
    assert_eq!(words(&desired, &actual), ["add t3", "draining t2 1", "remove t1"]);
}

#[test]
fn endpoints_become_ready_before_others_drain() {
    let actual = table(&[("web", service(&[1], &[(1, Ready, 1), (2, Draining, 1)]))]);
    let desired = table(&[("web", service(&[1], &[(1, Draining, 1), (2, Ready, 5)]))]);
    assert_eq!(words(&desired, &actual), ["ready t2 5", "draining t1 1"]);
}

#[test]
fn a_policy_is_there_before_the_listener_and_goes_last() {
    let maglev = ServicePolicy { algorithm: Algorithm::Maglev, ..ServicePolicy::default() };
    let one = table(&[("web", ServiceSpec { policy: maglev, ..service(&[1], &[(1, Ready, 1)]) })]);
    assert_eq!(words(&one, &RouteTable::default()), ["add t1", "policy maglev", "open 127.11.0.1"]);
    assert_eq!(
        words(&RouteTable::default(), &one),
        ["close 127.11.0.1", "remove t1", "policy weighted-random"]
    );
}

#[test]
fn an_address_is_free_before_another_service_takes_it() {
    let actual = table(&[("b", service(&[1], &[]))]);
    let desired = table(&[("a", service(&[1], &[]))]);
    assert_eq!(words(&desired, &actual), ["close 127.11.0.1", "open 127.11.0.1"]);
}

#[test]
fn nothing_is_done_when_nothing_changed() {
    let same = table(&[("web", service(&[1], &[(1, Ready, 1)]))]);
    assert_eq!(words(&same, &same), Vec::<String>::new());
}

fn any_table() -> impl Strategy<Value = RouteTable> {
    let spec = (prop_oneof![Just(Ready), Just(Draining)], 0_u32..3);
    let endpoints = prop::collection::btree_map(0_u8..5, spec, 0..4);
    let listeners = prop::collection::btree_set(0_u8..4, 0..3);
    let algorithm = prop::sample::select(&Algorithm::ALL[..]);
    prop::collection::btree_map(0_u8..5, (listeners, endpoints, algorithm), 0..4).prop_map(|services| {
        let mut table = RouteTable::default();
        for (name, (listeners, endpoints, algorithm)) in services {
            let listeners: Vec<u8> = listeners.into_iter().collect();
            let endpoints: Vec<_> =
                endpoints.into_iter().map(|(n, (state, weight))| (n, state, weight)).collect();
            let policy = ServicePolicy { algorithm, ..ServicePolicy::default() };
            let spec = ServiceSpec { policy, ..service(&listeners, &endpoints) };
            table.set(key(&format!("s{name}")), spec);
        }
        table
    })
}

fn ready_of(spec: Option<&ServiceSpec>) -> usize {
    spec.map_or(0, |spec| spec.endpoints.values().filter(|endpoint| endpoint.state == Ready).count())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_leads_to_the_desired_table(desired in any_table(), actual in any_table()) {
        let mut table = actual.clone();
        for op in plan(&all_keys(&desired, &actual), &desired, &actual) {
            let before = table.clone();
            table.apply(&op);
            prop_assert_ne!(&table, &before, "an operation without effect: {:?}", op);
        }
        prop_assert_eq!(table, desired);
    }

    #[test]
    fn unchanged_services_are_left_alone(desired in any_table(), actual in any_table()) {
        for op in plan(&all_keys(&desired, &actual), &desired, &actual) {
            prop_assert_ne!(desired.service(op.service()), actual.service(op.service()));
        }
    }

    #[test]
    fn no_moment_in_between_misroutes(desired in any_table(), actual in any_table()) {
        let mut table = actual.clone();
        for op in plan(&all_keys(&desired, &actual), &desired, &actual) {
            table.apply(&op);
            for (key, now) in table.services() {
                let (old, new) = (actual.service(key), desired.service(key));
                for id in now.endpoints.keys() {
                    let known = |spec: Option<&ServiceSpec>| spec.is_some_and(|spec| spec.endpoints.contains_key(id));
                    prop_assert!(known(old) || known(new), "{key} routes to a stranger");
                }
                if ready_of(old) > 0 && ready_of(new) > 0 {
                    prop_assert!(ready_of(Some(now)) > 0, "{key} has nothing ready after {op:?}");
                }
                for address in &now.listeners {
                    let was_open = old.is_some_and(|spec| spec.listeners.contains(address));
                    let complete = new.is_some_and(|new| {
                        new.policy == now.policy
                            && new.endpoints.iter().all(|(id, spec)| now.endpoints.get(id) == Some(spec))
                    });
                    prop_assert!(was_open || complete, "{key} opens {address} before its endpoints are there");
                }
                for address in old.iter().flat_map(|spec| &spec.listeners) {
                    let stays = new.is_some_and(|spec| spec.listeners.contains(address));
                    prop_assert!(!stays || now.listeners.contains(address), "{key} closes {address} for nothing");
                }
            }
            let mut owners: BTreeMap<SocketAddr, usize> = BTreeMap::new();
            for (_, spec) in table.services() {
                for address in &spec.listeners {
                    *owners.entry(*address).or_default() += 1;
                }
            }
            for (address, count) in owners {
                let shared = |table: &RouteTable| {
                    table.services().filter(|(_, spec)| spec.listeners.contains(&address)).count()
                };
                let most = shared(&desired).max(shared(&actual));
                prop_assert!(count <= most, "{address} has {count} owners, at most {most} before and after");
            }
        }
    }
}
