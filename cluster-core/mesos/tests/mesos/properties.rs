//! Whatever comes, nothing panics; and a follower that has seen much is where one is that begins now.

use std::net::Ipv4Addr;
use std::sync::LazyLock;

use mesonet_mesos::{OperatorFollower, Options, StateFollower};
use mesonet_model::{ClusterView, Endpoint, Revision, Service};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::state::NOW;
use crate::zones::{mesos_dns, records};

/// A value of any kind, to put where something else is expected.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z@:._/\\-\\[\\]0-9 é]{0,12}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null, 5, "x", {"value": "y"}])),
        Just(json!({"labels": [{"key": "VIP_0", "value": "/web:80"}]})),
    ]
}

/// Puts another value at the place that a number chooses among all places, or takes it away.
fn damage(value: &mut Value, place: &mut usize, new: &Option<Value>) -> bool {
    let children: Vec<&mut Value> = match value {
        Value::Array(items) => items.iter_mut().collect(),
        Value::Object(members) => members.iter_mut().map(|(_, member)| member).collect(),
        _ => return false,
    };
    for child in children {
        if *place == 0 {
            *child = new.clone().unwrap_or(Value::Null);
            return true;
        }
        *place -= 1;
        if damage(child, place, new) {
            return true;
        }
    }
    false
}

fn task(id: u8, name: u8, agent: u8, address: u8, state: u8) -> Value {
    let names = ["web", "nginx.web", "Odd Name", "", "é"];
    let states = ["TASK_RUNNING", "TASK_RUNNING", "TASK_STAGING", "TASK_KILLING", "TASK_FAILED"];
    let chosen = if address == 0 { format!("{}:80", *CHOSEN) } else { String::new() };
    json!({
        "id": format!("t{id}"), "name": (names[usize::from(name) % names.len()]),
        "slave_id": format!("c-S{agent}"), "state": (states[usize::from(state) % states.len()]),
        "resources": {"cpus": 0.5, "ports": "[31000-31001]"},
        "labels": [{"key": "VIP_PORT0", "value": "tcp://lab:1"}],
        "statuses": [{"state": "TASK_RUNNING", "timestamp": 1.5, "healthy": (state.is_multiple_of(2)),
            "labels": [{"key": "Docker.NetworkSettings.IPAddress", "value": "7.7.7.7"}],
            "container_status": {"network_infos": [
                {"ip_addresses": [{"ip_address": format!("9.0.0.{address}")}], "port_mappings": [
                    {"host_port": 31000, "container_port": 80, "protocol": "tcp"}]}]}}],
        "discovery": {"visibility": "CLUSTER", "name": (names[usize::from(name + address) % names.len()]),
            "ports": {"ports": [{"number": 80, "protocol": "tcp", "name": "http", "labels": {"labels": [
                {"key": "VIP_0", "value": format!("/v{name}:80")},
                {"key": "VIP_1", "value": chosen}]}}]}},
        "container": {"type": "MESOS", "network_infos": [{"name": "dcos"}]}, "health_check": {},
    })
}

/// The address of a name, which users may choose, too.
static CHOSEN: LazyLock<Ipv4Addr> = LazyLock::new(|| {
    let state = state(&[(0, 0, 0, 1, 0)], 1, 1, 0).to_string();
    let view = StateFollower::new(options()).apply_state(state.as_bytes(), NOW).expect("a state");
    let mut services = view.services.values().filter(|service| service.key.port == 80);
    services.find_map(|service| service.ipv4).expect("a service")
});

fn state(tasks: &[(u8, u8, u8, u8, u8)], agents: u8, frameworks: u8, leader: u8) -> Value {
    let agents: Vec<Value> = (0..agents)
        .map(|at| {
            json!({"id": format!("c-S{at}"), "pid": format!("slave(1)@10.0.0.{at}:5051"),
            "hostname": format!("10.0.0.{at}"), "active": (at != 1)})
        })
        .collect();
    let frameworks: Vec<Value> = (0..frameworks)
        .map(|at| {
            let own = tasks.iter().filter(|(id, ..)| id % frameworks == at);
            let tasks: Vec<Value> = own
                .map(|(id, name, agent, address, state)| task(*id, *name, *agent, *address, *state))
                .collect();
            let name = ["marathon", "my.fw"][usize::from(at % 2)];
            json!({"id": format!("f{at}"), "name": name,
                "pid": format!("s@10.1.0.{at}:80"), "hostname": "h", "active": true, "tasks": tasks})
        })
        .collect();
    json!({"leader": format!("master@10.2.0.{leader}:5050"), "slaves": agents, "frameworks": frameworks})
}

fn any_state() -> impl Strategy<Value = Value> {
    let task = (0..8_u8, 0..5_u8, 0..3_u8, 0..4_u8, 0..5_u8);
    (proptest::collection::vec(task, 0..8), 0..4_u8, 1..3_u8, 0..3_u8)
        .prop_map(|(tasks, agents, frameworks, leader)| state(&tasks, agents, frameworks, leader))
}

/// Everything that names and routes follow from, without what only counts or tells the time, or tells of a task's past:
/// whether it was well before it failed is known only to who has seen it.
fn shown(view: &ClusterView) -> (Vec<String>, String) {
    let mut view = view.clone();
    view.revision = Revision::ZERO;
    let addresses = |each: &Service| format!("{} {:?} {:?}", each.key, each.ipv4, each.ipv6);
    let services: Vec<String> = view.services.values().map(|each| addresses(each)).collect();
    let endpoint = |endpoint: &Endpoint| Endpoint { failing: false, ..endpoint.clone() };
    let endpoints: Vec<String> =
        view.endpoints.iter().map(|(key, each)| format!("{key} {:?}", endpoint(each))).collect();
    (records(&view, &mesos_dns()), format!("{services:?} {endpoints:?} {:?} {:?}", view.agents, view.masters))
}

fn options() -> Options {
    Options { masters: vec!["10.2.0.0:5050".to_owned(), "10.2.0.1:5050".to_owned()], ..Options::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn following_equals_starting_anew(states in proptest::collection::vec(any_state(), 1..6)) {
        let mut follower = StateFollower::new(options());
        let mut revision = Revision::ZERO;
        for state in states {
            let json = state.to_string();
            let view = follower.apply_state(json.as_bytes(), NOW).expect("a state");
            let anew = StateFollower::new(options()).apply_state(json.as_bytes(), NOW).expect("a state");
            prop_assert_eq!(shown(&view), shown(&anew));
            prop_assert!(view.revision >= revision);
            revision = view.revision;
        }
    }

    #[test]
    fn damaged_states_make_a_view_or_an_error(
        state in any_state(),
        changes in proptest::collection::vec((0..400_usize, proptest::option::of(any_value())), 0..8),
        cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut state = state;
        for (place, new) in changes {
            damage(&mut state, &mut place.clone(), &new);
        }
        let mut json = state.to_string().into_bytes();
        if let Some(cut) = cut {
            json.truncate(cut.index(json.len()));
        }
        let mut follower = StateFollower::new(options());
        if let Ok(view) = follower.apply_state(&json, NOW) {
            records(&view, &mesos_dns());
        }
    }

    #[test]
    fn damaged_events_make_a_view_or_an_error(
        tasks in proptest::collection::vec((0..8_u8, 0..5_u8, 0..3_u8, 0..4_u8, 0..5_u8), 1..5),
        changes in proptest::collection::vec((0..5_usize, 0..120_usize, proptest::option::of(any_value())), 0..8),
    ) {
        let v1 = |(id, name, agent, address, state): &(u8, u8, u8, u8, u8)| {
            let mut task = task(*id, *name, *agent, *address, *state);
            task["task_id"] = json!({"value": task["id"]});
            task["agent_id"] = json!({"value": task["slave_id"]});
            task["framework_id"] = json!({"value": "f"});
            for member in ["id", "slave_id"] {
                task.as_object_mut().expect("an object").remove(member);
            }
            task
        };
        let agent = json!({"agent_info": {"id": {"value": "c-S0"}, "hostname": "10.0.0.1"}, "pid": "s@10.0.0.1:5051"});
        let framework = json!({"framework_info": {"id": {"value": "f"}, "name": "marathon", "hostname": "10.0.0.3"}});
        let mut events = vec![json!({"type": "SUBSCRIBED", "subscribed": {"heartbeat_interval_seconds": 15.0,
            "get_state": {"get_agents": {"agents": [agent]}, "get_frameworks": {"frameworks": [framework]},
                "get_tasks": {"tasks": [v1(&tasks[0])]}}}})];
        events.extend(tasks.iter().map(|each| json!({"type": "TASK_ADDED", "task_added": {"task": v1(each)}})));
        events.push(json!({"type": "TASK_UPDATED", "task_updated": {"framework_id": {"value": "f"},
            "state": "TASK_RUNNING", "status": {"task_id": {"value": "t0"}, "timestamp": 5.0}}}));
        let count = events.len();
        for (event, place, new) in changes {
            damage(&mut events[event % count], &mut place.clone(), &new);
        }
        let mut follower = OperatorFollower::new(options());
        for event in events {
            if let Ok(Some(view)) = follower.apply(event.to_string().as_bytes(), NOW) {
                records(&view, &mesos_dns());
            }
        }
    }
}
