//! Deltas lead from any view to any other one, and compose.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, ClusterId, ClusterView, Delta, DeltaMismatch, Endpoint,
    EndpointKey, EndpointState, Framework, FrameworkId, Master, MasterId, Protocol, Resources, Revision,
    Scalar, Service, ServiceKey, Task, TaskId, TaskKey, TaskState, Timestamp, Vip,
};
use proptest::prelude::*;

/// One change of a view: the kind of the record, which one, and its value or that it is removed.
type Edit = (u8, u16, Option<u8>);

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec((0..6_u8, 0..200_u16, prop::option::weighted(0.7, 0..3_u8)), 0..most)
}

fn apply(view: &mut ClusterView, edits: &[Edit]) {
    for (kind, n, value) in edits {
        edit(view, *kind, *n, *value);
    }
    view.revision = view.revision.next();
}

macro_rules! put_or_remove {
    ($map:expr, $key:expr, $value:expr) => {{
        let key = $key;
        match $value {
            Some(value) => $map.insert(key, Arc::new(value)),
            None => $map.remove(&key),
        };
    }};
}

fn edit(view: &mut ClusterView, kind: u8, n: u16, value: Option<u8>) {
    match kind {
        0 => {
            let id = MasterId::new(format!("m{n}"));
            let master = |value| Master {
                id: id.clone(),
                address: ([127, 0, 0, 1], value).into(),
                leading: false,
                removal_held: false,
            };
            put_or_remove!(view.masters, id.clone(), value.map(|value| master(value.into())));
        }
        1 => {
            let id = FrameworkId::new(format!("f{n}"));
            put_or_remove!(view.frameworks, id.clone(), value.map(|value| framework(&id, value)));
        }
        2 => {
            let id = AgentId::new(format!("a{n}"));
            put_or_remove!(view.agents, id.clone(), value.map(|value| agent(&id, value)));
        }
        3 => {
            let key = TaskKey::new(FrameworkId::new("f"), TaskId::new(format!("t{n}")));
            put_or_remove!(view.tasks, key.clone(), value.map(|value| task(&key, value)));
        }
        4 => {
            let key = service_key(n);
            let service =
                |value| Service { ipv4: Some([11, 0, 0, value].into()), ..Service::new(key.clone()) };
            put_or_remove!(view.services, key.clone(), value.map(service));
        }
        _ => {
            let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(format!("t{n}")));
            let key = EndpointKey { service: service_key(n % 10), task, address: ([10, 0, 0, 1], n).into() };
            let endpoint = |value| Endpoint::new(AgentId::new("a"), EndpointState::Ready, value);
            put_or_remove!(view.endpoints, key, value.map(|value| endpoint(value.into())));
        }
    }
}

fn framework(id: &FrameworkId, value: u8) -> Framework {
    Framework {
        id: id.clone(),
        name: format!("name{value}"),
        user: String::new(),
        role: "*".to_owned(),
        hostname: String::new(),
        address: None,
        webui_url: None,
        other_addresses: Vec::new(),
        active: true,
        registered_at: Timestamp::default(),
    }
}

fn agent(id: &AgentId, value: u8) -> Agent {
    Agent {
        id: id.clone(),
        info: AgentInfo {
            hostname: "h".to_owned(),
            address: [10, 0, 0, value].into(),
            port: 0,
            resources: Resources::default(),
            attributes: Vec::new(),
            container_networks: false,
        },
        other_addresses: Vec::new(),
        state: AgentState::Active,
        draining: false,
        registered_at: Timestamp::default(),
    }
}

fn task(key: &TaskKey, value: u8) -> Task {
    Task {
        key: key.clone(),
        name: "web".to_owned(),
        agent: AgentId::new("a"),
        state: TaskState::Running,
        resources: Resources { cpus: Scalar::from_units(value.into()), ..Resources::default() },
        discovery: None,
        labels: BTreeMap::new(),
        addresses: Vec::new(),
        healthy: None,
        ready: true,
        draining: false,
        suspect: false,
        ready_since: None,
        network: None,
        staged_at: Timestamp::default(),
        started_at: None,
        updated_at: Timestamp::default(),
    }
}

fn service_key(n: u16) -> ServiceKey {
    let vip = Vip::Named { name: format!("s{n}").into(), framework: "f".into() };
    ServiceKey { protocol: Protocol::Tcp, vip, port: 80 }
}

fn empty() -> ClusterView {
    ClusterView::empty(ClusterId::new("c"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_delta_leads_from_one_view_to_the_other(
        before in edits(300),
        between in edits(40),
        after in edits(40),
    ) {
        let mut first = empty();
        apply(&mut first, &before);
        let mut second = first.clone();
        apply(&mut second, &between);
        let mut third = second.clone();
        apply(&mut third, &after);

        for (from, to) in [(&first, &second), (&first, &third), (&third, &first), (&empty(), &third)] {
            let mut view = from.clone();
            let delta = Delta::between(from, to);
            view.apply(&delta).expect("the delta starts here");
            prop_assert_eq!(&view, to);
            prop_assert!(Delta::between(&view, to).is_empty());
        }
    }

    #[test]
    fn views_that_share_nothing_differ_in_the_same_way(before in edits(200), after in edits(40)) {
        let mut old = empty();
        apply(&mut old, &before);
        let mut new = old.clone();
        apply(&mut new, &after);
        let json = serde_json::to_string(&old).expect("text keys");
        let unshared: ClusterView = serde_json::from_str(&json).expect("own JSON");
        prop_assert_eq!(&unshared, &old);
        prop_assert_eq!(Delta::between(&unshared, &new), Delta::between(&old, &new));
    }

    #[test]
    fn a_delta_survives_its_wire_format(before in edits(100), after in edits(40)) {
        let mut old = empty();
        apply(&mut old, &before);
        let mut new = old.clone();
        apply(&mut new, &after);
        let delta = Delta::between(&old, &new);
        let json = serde_json::to_string(&delta).expect("text keys");
        prop_assert_eq!(serde_json::from_str::<Delta>(&json).expect("own JSON"), delta);
    }
}

#[test]
fn a_delta_that_starts_elsewhere_changes_nothing() {
    let mut old = empty();
    apply(&mut old, &[(2, 1, Some(1))]);
    let mut new = old.clone();
    apply(&mut new, &[(2, 2, Some(1))]);
    let delta = Delta::between(&old, &new);
    let mut view = new.clone();
    assert_eq!(view.apply(&delta), Err(DeltaMismatch { from: Revision(1), view: Revision(2) }));
    assert_eq!(view, new);
}

/// Counts how often a task is compared, through the one hook that comparing has.
#[test]
fn one_change_among_many_is_found_without_looking_at_all() {
    thread_local!(static COMPARED: Cell<usize> = const { Cell::new(0) });

    #[derive(Clone, Debug)]
    struct Value(u32);

    impl PartialEq for Value {
        fn eq(&self, other: &Self) -> bool {
            COMPARED.set(COMPARED.get() + 1);
            self.0 == other.0
        }
    }

    let old: OrdMap<u32, Value> = (0..100_000_u32).map(|n| (n, Value(0))).collect();
    let mut new = old.clone();
    new.insert(50_000, Value(1));
    new.remove(&70_000);
    new.insert(200_000, Value(1));
    assert_eq!(old.diff(&new).count(), 3);
    let compared = COMPARED.get();
    assert!(compared < 1_000, "{compared} of 100,000 values were compared");
}
