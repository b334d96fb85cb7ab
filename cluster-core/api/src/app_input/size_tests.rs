//! Apps that are too much for a task.

use serde_json::{Value, json};

use super::tests::{assert_breaks, read, with};

/// So many ports, without names.
fn ports(count: usize, port: &Value) -> Value {
    Value::Array(vec![port.clone(); count])
}

/// So many labels that mean nothing.
fn labels(count: usize) -> Value {
    (0..count).map(|number| (format!("label{number}"), json!("x"))).collect::<serde_json::Map<_, _>>().into()
}

fn on_networks(names: &[&str], mappings: Value) -> Value {
    let networks: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
    json!({"networks": networks, "container": {"type": "MESOS", "portMappings": mappings}})
}

#[test]
fn an_id_is_no_longer_than_its_tasks_ids_allow() {
    let deep = "/a".repeat(20_000);
    let long = format!("/group/{}", "x".repeat(197));
    assert_breaks([
        (json!({"id": deep}), "/id", "must not be longer than 203 bytes, this one has 40000"),
        (json!({"id": long}), "/id", "must not be longer than 203 bytes, this one has 204"),
    ]);
    let app = read(&with(json!({"id": &long[..203]}))).expect("as long as may be");
    let task = format!("{}.instance-{}._app.1", app.id.task_id_prefix(), "0".repeat(36));
    assert_eq!(task.len(), 255, "the name of a directory");
}

#[test]
fn a_task_publishes_so_many_ports() {
    let own = json!({"containerPort": 80});
    let mut of_one = vec![own.clone(); 127];
    of_one.push(json!({"containerPort": 80, "networkNames": ["n"]}));
    of_one.push(json!({"containerPort": 80, "hostPort": 0}));
    let fits = on_networks(&["n", "m"], json!(of_one.clone()));
    for fields in [
        json!({"portDefinitions": ports(256, &json!({}))}),
        json!({"portDefinitions": ports(128, &json!({"protocol": "udp,tcp"}))}),
        on_networks(&["n"], ports(256, &own)),
        on_networks(&["n", "m"], ports(128, &own)),
    ] {
        assert!(read(&with(fields.clone())).is_ok(), "{fields}");
    }
    let text = "a task may publish 256 ports, counted by protocol and network, not ";
    assert_breaks([
        (json!({"portDefinitions": ports(257, &json!({}))}), "/portDefinitions", &format!("{text}257")),
        (json!({"ports": ports(257, &json!(0))}), "/portDefinitions", &format!("{text}257")),
        (
            json!({"portDefinitions": ports(129, &json!({"protocol": "udp,tcp"}))}),
            "/portDefinitions",
            &format!("{text}258"),
        ),
        (on_networks(&["n", "m"], ports(129, &own)), "/container/portMappings", &format!("{text}258")),
    ]);
    // A port of the host needs a network of its own where there are two; the others count by network.
    let faults = read(&with(fits)).expect_err("hostPort without a network");
    assert!(!faults.1.contains_key("/container/portMappings"), "{faults:?}");
    of_one.push(json!({"containerPort": 80, "networkNames": ["m"]}));
    assert_breaks([(
        on_networks(&["n", "m"], json!(of_one)),
        "/container/portMappings",
        &format!("{text}257"),
    )]);
}

#[test]
fn a_port_has_so_many_labels() {
    let own = |count| json!([{"containerPort": 80, "labels": labels(count)}]);
    assert!(read(&with(json!({"portDefinitions": [{"labels": labels(64)}]}))).is_ok());
    assert!(read(&with(on_networks(&["n"], own(62)))).is_ok());
    let of_host = json!([{"containerPort": 80, "hostPort": 0, "labels": labels(63)}]);
    assert!(read(&with(on_networks(&["n"], of_host))).is_ok());
    assert_breaks([
        (
            json!({"portDefinitions": [{}, {"labels": labels(65)}]}),
            "/portDefinitions(1)/labels",
            "a port may have 64 labels, not 65",
        ),
        (
            on_networks(&["n"], own(63)),
            "/container/portMappings(0)/labels",
            "a port may have 62 labels, not 63",
        ),
    ]);
}
