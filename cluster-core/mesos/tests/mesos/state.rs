//! Views from `/master/state`.

use mesonet_mesos::{Options, StateError, StateFollower};
use mesonet_model::{ClusterView, Delta, Revision, Timestamp};

pub const NOW: Timestamp = Timestamp::from_millis(1_000_000);

/// A state with one framework, one agent and the tasks given as JSON.
pub fn state(tasks: &[&str]) -> String {
    format!(
        r#"{{"leader": "master@10.0.0.1:5050", "id": "x", "unknown": [1, {{}}],
            "slaves": [{{"id": "c-S0", "pid": "slave(1)@10.0.0.2:5051", "hostname": "10.0.0.2", "active": true}}],
            "frameworks": [{{"id": "f", "name": "marathon", "pid": "scheduler-1@10.0.0.3:25501",
                             "hostname": "h", "active": true, "tasks": [{}]}}]}}"#,
        tasks.join(",")
    )
}

/// A running task.
pub fn task(id: &str, rest: &str) -> String {
    let comma = if rest.is_empty() { "" } else { ", " };
    format!(r#"{{"id": "{id}", "name": "web", "slave_id": "c-S0", "state": "TASK_RUNNING"{comma}{rest}}}"#)
}

fn follower() -> StateFollower {
    StateFollower::new(Options { masters: vec!["10.0.0.1:5050".to_owned()], ..Options::default() })
}

fn apply(follower: &mut StateFollower, state: &str) -> ClusterView {
    follower.apply_state(state.as_bytes(), NOW).expect("a state")
}

#[test]
fn polls_make_views_whose_deltas_hold_only_what_changed() {
    let mut follower = follower();
    let (one, two) = (task("t1", ""), task("t2", ""));
    let first = apply(&mut follower, &state(&[&one, &two]));
    assert_eq!((first.revision, first.tasks.len(), first.agents.len()), (Revision(1), 2, 1));
    let again = apply(&mut follower, &state(&[&two, &one]));
    assert_eq!(again, first, "the same state in another order is the same view");
    let changed = task("t2", r#""labels": [{"key": "a", "value": "b"}]"#);
    let second = apply(&mut follower, &state(&[&one, &changed]));
    let delta = Delta::between(&first, &second);
    assert_eq!((delta.from, delta.to, delta.tasks.0.len()), (Revision(1), Revision(2), 1));
    let third = apply(&mut follower, &state(&[&changed]));
    assert_eq!((third.revision, third.tasks.len()), (Revision(3), 1));
}

#[test]
fn states_that_cannot_be_used_change_nothing() {
    let mut follower = follower();
    let view = apply(&mut follower, &state(&[&task("t1", "")]));
    for (json, expected) in [
        ("", "state is no JSON object"),
        ("5", "state is no JSON object"),
        ("{\"leader\": 5}", "state is no JSON object"),
        ("{}", "state has no leader"),
        ("{\"leader\": \"\"}", "state has no leader"),
    ] {
        let error: StateError = follower.apply_state(json.as_bytes(), NOW).expect_err(json);
        assert!(error.to_string().starts_with(expected), "{json}: {error}");
    }
    assert_eq!(apply(&mut follower, &state(&[&task("t1", "")])), view);
}

#[test]
fn a_name_has_its_address_whoever_chooses_it() {
    let with_vip = |id: &str, vip: &str| {
        let port = format!(
            r#"{{"number": 80, "protocol": "tcp", "labels": {{"labels": [{{"key": "VIP_0", "value": "{vip}"}}]}}}}"#
        );
        let statuses = r#""statuses": [{"state": "TASK_RUNNING", "timestamp": 1.0, "container_status": {"network_infos":
            [{"ip_addresses": [{"ip_address": "9.0.0.1"}]}]}}]"#;
        task(id, &format!(r#"{statuses}, "discovery": {{"ports": {{"ports": [{port}]}}}}"#))
    };
    let (named, chosen) = (with_vip("a", "/web:80"), with_vip("b", "11.225.36.193:80"));
    let (earlier, other_port) = (with_vip("0", "11.225.36.193:80"), with_vip("c", "11.225.36.193:81"));
    let mut follower = follower();
    let mut shows = |tasks: &[&str], expected: &[&str]| {
        let view = apply(&mut follower, &state(tasks));
        let addressed = view.services.values().filter(|each| each.ipv4 == Some([11, 225, 36, 193].into()));
        let addressed: Vec<String> = addressed.map(|service| service.key.to_string()).collect();
        assert_eq!(addressed, expected, "{tasks:?}");
    };
    let (web, static_web) = ("tcp/web@marathon:80", "tcp/11.225.36.193:80");
    shows(&[&chosen], &[static_web]);
    shows(&[&chosen, &named, &other_port], &[web, "tcp/11.225.36.193:81"]);
    shows(&[&chosen], &[static_web]);
    shows(&[&named], &[web]);
    shows(&[&named, &chosen], &[web]);
    shows(&[&named], &[web]);
    // What is read first makes no difference.
    shows(&[], &[]);
    shows(&[&earlier, &named], &[web]);
}
