use mesonet_model::NetworkMode;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::json_reader::Details;
use crate::output::app::definition;

/// Reads an app: the definition, else malformed values and broken rules.
pub(super) fn read(value: &Value) -> Result<AppDefinition, (Details, Details)> {
    let findings = Findings::default();
    match read_app(value, "", None, &findings) {
        Some(app) => Ok(app),
        None => Err(findings.into_faults()),
    }
}

/// An app with these fields besides `id` and `cmd`.
pub(super) fn with(fields: Value) -> Value {
    let mut app = json!({"id": "/a/b", "cmd": "sleep 1"});
    app.as_object_mut().expect("object").extend(fields.as_object().expect("object").clone());
    app
}

/// What is printed of an app with these fields.
fn printed(fields: Value) -> Value {
    let value = with(fields);
    Value::Object(definition(&read(&value).unwrap_or_else(|faults| panic!("{value}: {faults:?}"))))
}

#[test]
fn defaults_are_marathons() {
    assert_eq!(
        printed(json!({})),
        json!({
            "id": "/a/b", "cmd": "sleep 1", "args": null, "container": null, "instances": 1, "cpus": 1, "mem": 128,
            "disk": 0, "gpus": 0, "executor": "", "env": {}, "labels": {}, "constraints": [],
            "networks": [{"mode": "host"}],
            "portDefinitions": [{"port": 0, "name": "default", "protocol": "tcp", "labels": {}}],
            "requirePorts": false, "healthChecks": [], "readinessChecks": [],
            "upgradeStrategy": {"minimumHealthCapacity": 1, "maximumOverCapacity": 1},
            "killSelection": "YOUNGEST_FIRST",
            "unreachableStrategy": {"inactiveAfterSeconds": 0, "expungeAfterSeconds": 0},
            "backoffSeconds": 1, "backoffFactor": 1.15, "maxLaunchDelaySeconds": 300, "dependencies": [],
            "fetch": [], "version": "1970-01-01T00:00:00.000Z",
            "versionInfo": {
                "lastScalingAt": "1970-01-01T00:00:00.000Z", "lastConfigChangeAt": "1970-01-01T00:00:00.000Z",
            },
        })
    );
}

/// Checks what is printed at a pointer into an app with these fields, and that it reads as it is printed.
pub(super) fn assert_prints<const N: usize>(cases: [(Value, &str, Value); N]) {
    for (fields, pointer, expected) in cases {
        let printed = printed(fields.clone());
        assert_eq!(printed.pointer(pointer), Some(&expected), "{fields}");
        let again = read(&printed).expect("what is printed can be read");
        assert_eq!(Value::Object(definition(&again)), printed, "{fields}");
    }
}

#[test]
fn ports_and_networks_are_normalised() {
    let mapping =
        json!({"containerPort": 80, "hostPort": 0, "servicePort": 0, "protocol": "tcp", "labels": {}});
    assert_prints([
        (json!({"ports": [80, 0]}), "/portDefinitions/0/port", json!(80)),
        (json!({"ports": [], "portDefinitions": [{"port": 9}]}), "/portDefinitions/0/port", json!(9)),
        (json!({"portDefinitions": []}), "/portDefinitions", json!([])),
        (
            json!({"portDefinitions": [{"protocol": "udp,tcp"}]}),
            "/portDefinitions/0/protocol",
            json!("udp,tcp"),
        ),
        (json!({"networks": []}), "/networks", json!([{"mode": "host"}])),
        (json!({"networks": [{"name": "n"}]}), "/networks", json!([{"mode": "container", "name": "n"}])),
        (json!({"networks": [{"mode": "container/bridge"}]}), "/container/type", json!("MESOS")),
        (
            json!({"networks": [{"mode": "container/bridge"}]}),
            "/container/portMappings/0",
            json!({"containerPort": 0, "hostPort": 0, "servicePort": 0, "protocol": "tcp", "labels": {}, "name": "default"}),
        ),
        (
            json!({"networks": [{"name": "n"}]}),
            "/container/portMappings/0",
            json!({"containerPort": 0, "servicePort": 0, "protocol": "tcp", "labels": {}, "name": "default"}),
        ),
        (
            json!({"container": {"docker": {"image": "i", "network": "BRIDGE", "portMappings": [{"containerPort": 80}]}}}),
            "/container/portMappings/0",
            mapping,
        ),
        (
            json!({"container": {"docker": {"image": "i", "network": "HOST"}}}),
            "/networks/0/mode",
            json!("host"),
        ),
        (
            json!({"container": {"docker": {"image": "i", "network": "USER"}}, "ipAddress": {"networkName": "n"}}),
            "/networks",
            json!([{"mode": "container", "name": "n"}]),
        ),
        (
            json!({"ipAddress": {"networkName": "n", "discovery": {"ports": [{"number": 80, "name": "web"}]}}}),
            "/container/portMappings/0/containerPort",
            json!(80),
        ),
    ]);
}

#[test]
fn other_fields_are_normalised() {
    let check = json!({
        "protocol": "HTTP", "gracePeriodSeconds": 300, "intervalSeconds": 60, "timeoutSeconds": 20,
        "maxConsecutiveFailures": 3, "delaySeconds": 15, "ignoreHttp1xx": false, "path": "/", "portIndex": 0,
    });
    assert_prints([
        (json!({"requirePorts": true, "networks": [{"name": "n"}]}), "/requirePorts", json!(false)),
        (json!({"healthChecks": [{}]}), "/healthChecks/0", check),
        (
            json!({"healthChecks": [{"protocol": "COMMAND", "command": {"value": "true"}}]}),
            "/healthChecks/0/command",
            json!({"value": "true"}),
        ),
        (
            json!({"residency": {"taskLostBehavior": "WAIT_FOREVER"}}),
            "/upgradeStrategy",
            json!({"minimumHealthCapacity": 0.5, "maximumOverCapacity": 0}),
        ),
        (
            json!({"residency": {"taskLostBehavior": "WAIT_FOREVER"}}),
            "/unreachableStrategy",
            json!("disabled"),
        ),
        (
            json!({"residency": {"taskLostBehavior": "RELAUNCH_AFTER_TIMEOUT"}}),
            "/residency",
            json!({"relaunchEscalationTimeoutSeconds": 3600, "taskLostBehavior": "RELAUNCH_AFTER_TIMEOUT"}),
        ),
        (
            json!({"container": {"type": "MESOS", "volumes": [
                {"containerPath": "data", "persistent": {"size": 10}, "mode": "RW"}
            ]}}),
            "/residency",
            json!({"relaunchEscalationTimeoutSeconds": 3600, "taskLostBehavior": "WAIT_FOREVER"}),
        ),
        (
            json!({"labels": {"MARATHON_SINGLE_INSTANCE_APP": "true"}}),
            "/upgradeStrategy",
            json!({"minimumHealthCapacity": 0, "maximumOverCapacity": 0}),
        ),
        (json!({"constraints": [["hostname", "unique"]]}), "/constraints", json!([["hostname", "UNIQUE"]])),
        (json!({"dependencies": ["c", "/d", "../e"]}), "/dependencies", json!(["/a/c", "/d", "/e"])),
        (json!({"unreachableStrategy": "disabled"}), "/unreachableStrategy", json!("disabled")),
        (json!({"mem": 0.5, "cpus": 0.001}), "/mem", json!(0.5)),
        (json!({"instances": 3.0}), "/instances", json!(3)),
        (json!({"cpus": null, "env": null, "networks": null}), "/cpus", json!(1)),
        (json!({"uris": ["http://h/a"]}), "/fetch/0/extract", json!(false)),
        (json!({"fetch": [{"uri": "/a:b"}]}), "/fetch/0/uri", json!("/a:b")),
        (json!({"tty": true}), "/tty", json!(true)),
        (json!({"taskKillGracePeriodSeconds": 7}), "/taskKillGracePeriodSeconds", json!(7)),
        (
            json!({"env": {"A": "1", "S": {"secret": "k"}}, "secrets": {"k": {"source": "/p"}}}),
            "/env",
            json!({"A": "1", "S": {"secret": "k"}}),
        ),
    ]);
}

#[test]
fn relative_ids_become_absolute() {
    let app = read(&json!({"id": "web", "cmd": "a"})).expect("valid");
    assert_eq!(app.id.as_str(), "/web");
    assert_eq!(app.networks[0].mode, NetworkMode::Host);
}

#[test]
fn malformed_values_are_named_by_path_and_code() {
    for (fields, path, code) in [
        (json!({"id": 1}), "/id", "error.expected.jsstring"),
        (json!({"cmd": ""}), "/cmd", "error.minLength"),
        (
            json!({"residency": {"taskLostBehavior": "FORGET"}}),
            "/residency/taskLostBehavior",
            "error.unknown.enum.literal",
        ),
        (json!({"args": "a"}), "/args", "error.expected.jsarray"),
        (json!({"args": [1]}), "/args(0)", "error.expected.jsstring"),
        (json!({"instances": "1"}), "/instances", "error.expected.jsnumber"),
        (json!({"instances": 1.5}), "/instances", "error.expected.int"),
        (json!({"instances": 1e12}), "/instances", "error.max"),
        (json!({"cpus": 0}), "/cpus", "error.min"),
        (json!({"mem": -1}), "/mem", "error.min"),
        (json!({"gpus": -1}), "/gpus", "error.min"),
        (json!({"executor": "/a//b"}), "/executor", "error.pattern"),
        (json!({"env": []}), "/env", "error.expected.jsobject"),
        (json!({"env": {"A": 1}}), "/env/A", "error.expected.jsstring"),
        (json!({"labels": {"a": true}}), "/labels/a", "error.expected.jsstring"),
        (json!({"constraints": [["a", 1]]}), "/constraints(0)(1)", "error.expected.jsstring"),
        (json!({"constraints": ["a"]}), "/constraints(0)", "error.expected.jsarray"),
        (json!({"container": {"type": "LXC"}}), "/container/type", "error.unknown.enum.literal"),
        (
            json!({"container": {"type": "DOCKER", "docker": {}}}),
            "/container/docker/image",
            "error.path.missing",
        ),
        (json!({"networks": [{"mode": "x"}]}), "/networks(0)/mode", "error.unknown.enum.literal"),
        (json!({"networks": [{"name": "N"}]}), "/networks(0)/name", "error.pattern"),
        (json!({"portDefinitions": [{"port": 65536}]}), "/portDefinitions(0)/port", "error.max"),
        (json!({"portDefinitions": [{"name": "-a"}]}), "/portDefinitions(0)/name", "error.pattern"),
        (
            json!({"portDefinitions": [{"protocol": "x"}]}),
            "/portDefinitions(0)/protocol",
            "error.unknown.enum.literal",
        ),
        (json!({"ports": [-1]}), "/ports(0)", "error.min"),
        (json!({"requirePorts": "yes"}), "/requirePorts", "error.expected.jsboolean"),
        (json!({"healthChecks": {}}), "/healthChecks", "error.expected.jsarray"),
        (
            json!({"healthChecks": [{"protocol": "X"}]}),
            "/healthChecks(0)/protocol",
            "error.unknown.enum.literal",
        ),
        (
            json!({"healthChecks": [{"protocol": "COMMAND"}]}),
            "/healthChecks(0)/command",
            "error.path.missing",
        ),
        (json!({"killSelection": "ANY"}), "/killSelection", "error.unknown.enum.literal"),
        (json!({"unreachableStrategy": "on"}), "/unreachableStrategy", "error.unknown.enum.literal"),
        (json!({"backoffFactor": 0.5}), "/backoffFactor", "error.min"),
        (json!({"backoffSeconds": -1}), "/backoffSeconds", "error.min"),
        (json!({"fetch": [{}]}), "/fetch(0)/uri", "error.path.missing"),
        (json!({"secrets": []}), "/secrets", "error.expected.jsobject"),
        (
            json!({"upgradeStrategy": {"minimumHealthCapacity": "1"}}),
            "/upgradeStrategy/minimumHealthCapacity",
            "error.expected.jsnumber",
        ),
    ] {
        let (malformed, _) = read(&with(fields.clone())).expect_err(&fields.to_string());
        assert_eq!(malformed.get(path), Some(&vec![code.to_owned()]), "{fields} {malformed:?}");
    }
}

/// Checks that an app with these fields breaks a rule at the path, with a text that contains this one.
pub(super) fn assert_breaks<const N: usize>(cases: [(Value, &str, &str); N]) {
    for (fields, path, text) in cases {
        let (malformed, invalid) = read(&with(fields.clone())).expect_err(&fields.to_string());
        assert!(malformed.is_empty(), "{fields} {malformed:?}");
        let found = invalid.get(path).is_some_and(|texts| texts.iter().any(|each| each.contains(text)));
        assert!(found, "{fields} {invalid:?}");
    }
}

#[test]
fn broken_rules_of_commands_and_constraints_are_named_by_path() {
    let single = json!({"MARATHON_SINGLE_INSTANCE_APP": "true"});
    assert_breaks([
        (json!({"id": "/A"}), "/id", "must fully match"),
        (json!({"id": "/a/tasks"}), "/id", "reserved"),
        (json!({"id": "/"}), "/id", "must not be empty"),
        (
            json!({"args": ["a"]}),
            "/",
            "AppDefinition must either contain one of 'cmd' or 'args', and/or a 'container'.",
        ),
        (json!({"cmd": null}), "/", "AppDefinition must either"),
        (json!({"cmd": null, "container": {"type": "MESOS"}}), "/", "AppDefinition must either"),
        (json!({"container": {}}), "/container/docker", "must not be empty"),
        (
            json!({"instances": 2, "labels": single}),
            "/instances",
            "Single instance app may only have one instance",
        ),
        (json!({"env": {"": "x"}}), "/env", "empty name"),
        (json!({"env": {"A": {"secret": "k"}}}), "/env(A)", "undefined secret"),
        (json!({"constraints": [["a"]]}), "/constraints(0)", "2 or 3"),
        (json!({"constraints": [["a", "NEAR"]]}), "/constraints(0)", "operator must be one of"),
        (json!({"constraints": [["a", "UNIQUE", "b"]]}), "/constraints(0)", "not used"),
        (json!({"constraints": [["a", "LIKE"]]}), "/constraints(0)", "regular expression"),
        (json!({"constraints": [["a", "LIKE", "("]]}), "/constraints(0)", "not a valid regular expression"),
        (json!({"constraints": [["a", "MAX_PER"]]}), "/constraints(0)", "number"),
        (json!({"constraints": [["a", "GROUP_BY", "x"]]}), "/constraints(0)", "number"),
        (json!({"constraints": [["a", "IS", "x y"]]}), "/constraints(0)", "IS only supports"),
    ]);
}

#[test]
fn labels_that_mean_nothing_are_named_by_path() {
    assert_breaks([
        (
            json!({"portDefinitions": [{"labels": {"VIPER": "x", "VIP_0": "/web"}}]}),
            "/portDefinitions(0)/labels/VIP_0",
            "VIP label '/web' has no port",
        ),
        (
            json!({"networks": [{"name": "n"}], "container": {"type": "MESOS", "portMappings": [
                {"labels": {"VIP_1": "/web:80", "vip_2": "web:http"}},
            ]}}),
            "/container/portMappings(0)/labels/vip_2",
            "no number from 1 to 65535",
        ),
        (
            json!({"portDefinitions": [{"labels": {"VIP0": "web"}}]}),
            "/portDefinitions(0)/labels/VIP0",
            "VIP label 'web' has no port",
        ),
        (
            json!({"portDefinitions": [{"labels": {"VIP_0": "0.0.0.0:80"}}]}),
            "/portDefinitions(0)/labels/VIP_0",
            "expected a unicast address",
        ),
        (
            json!({"portDefinitions": [{"labels": {"MESONET_LB_ALGORITHM": "rr"}}]}),
            "/portDefinitions(0)/labels/MESONET_LB_ALGORITHM",
            "expected weighted-random, least-connections or maglev",
        ),
        (
            json!({"networks": [{"mode": "container/bridge"}], "container": {"type": "MESOS", "portMappings": [
                {"labels": {"VIP_0": "/web:80", "MESONET_LB_WIEGHT": "5"}},
            ]}}),
            "/container/portMappings(0)/labels/MESONET_LB_WIEGHT",
            "is unknown: expected one of MESONET_LB_ALGORITHM, ",
        ),
    ]);
}

#[test]
fn broken_rules_of_ports_and_networks_are_named_by_path() {
    assert_breaks([
        (
            json!({"portDefinitions": [{"name": "a"}, {"name": "a"}]}),
            "/portDefinitions",
            "Port names must be unique.",
        ),
        (json!({"portDefinitions": [{"port": 9}, {"port": 9}]}), "/portDefinitions", "Ports must be unique."),
        (
            json!({"ports": [9], "portDefinitions": [{"port": 8}]}),
            "/ports",
            "both ports and port definitions",
        ),
        (
            json!({"networks": [{"name": "n"}], "portDefinitions": [{}]}),
            "/portDefinitions",
            "portDefinitions are only allowed with host-networking",
        ),
        (
            json!({"container": {"type": "MESOS", "portMappings": [{}]}}),
            "/container/portMappings",
            "portMappings are not allowed with host-networking",
        ),
        (
            json!({"networks": [{"mode": "container"}]}),
            "/networks(0)/name",
            "Network name must be specified when container network is selected.",
        ),
        (json!({"networks": [{"mode": "host", "name": "n"}]}), "/networks(0)", "neither name nor labels"),
        (json!({"networks": [{"mode": "host"}, {"name": "n"}]}), "/networks", "exactly one host"),
        (json!({"networks": [{"name": "n"}, {"name": "n"}]}), "/networks", "unique"),
        (
            json!({"networks": [{"name": "n"}], "ipAddress": {}}),
            "/networks",
            "must not specify both networks and ipAddress",
        ),
    ]);
}

#[test]
fn broken_rules_of_checks_and_lifecycle_are_named_by_path() {
    let docker = json!({"type": "DOCKER", "docker": {"image": "i"}});
    assert_breaks([
        (
            json!({"healthChecks": [{"portIndex": 1}]}),
            "/healthChecks(0)",
            "Health check port indices must address an element of the ports array or container port mappings.",
        ),
        (
            json!({"healthChecks": [{"protocol": "MESOS_TCP"}, {"protocol": "MESOS_HTTP"}]}),
            "/healthChecks",
            "at most one",
        ),
        (json!({"healthChecks": [{"ipProtocol": "IPv6"}]}), "/healthChecks(0)/ipProtocol", "IPv6"),
        (json!({"readinessChecks": [{}]}), "/readinessChecks(0)/portName", "name of one of"),
        (
            json!({"readinessChecks": [{"timeoutSeconds": 30}]}),
            "/readinessChecks(0)/timeoutSeconds",
            "less than",
        ),
        (
            json!({"upgradeStrategy": {"maximumOverCapacity": 1.1}}),
            "/upgradeStrategy/maximumOverCapacity",
            "between 0.0 and 1.0",
        ),
        (
            json!({"unreachableStrategy": {"inactiveAfterSeconds": 2, "expungeAfterSeconds": 1}}),
            "/unreachableStrategy/inactiveAfterSeconds",
            "expungeAfterSeconds",
        ),
        (json!({"residency": {"a": 1}, "unreachableStrategy": {}}), "/unreachableStrategy", "resident"),
        (json!({"uris": ["a"], "fetch": [{"uri": "b"}]}), "/uris", "fetch"),
        (json!({"fetch": [{"uri": "a b"}]}), "/fetch(0)/uri", "URI"),
        (json!({"fetch": [{"uri": "::"}]}), "/fetch(0)/uri", "URI has invalid syntax."),
        (json!({"uris": ["1http://a/b"]}), "/uris(0)", "URI has invalid syntax."),
        (json!({"acceptedResourceRoles": []}), "/acceptedResourceRoles", "must not be empty"),
        (json!({"acceptedResourceRoles": ["x"]}), "/acceptedResourceRoles", "can only contain"),
        (json!({"role": "x"}), "/role", "expected one of: [*, a]"),
        (json!({"gpus": 1, "container": docker}), "/gpus", "Mesos containerizer"),
        (json!({"check": {"tcp": {}}, "container": docker}), "/check", "Mesos containerizer"),
        (json!({"dependencies": ["b"]}), "/dependencies", "itself"),
        (json!({"dependencies": ["/B"]}), "/dependencies(0)", "must fully match"),
        (json!({"labels": {"DCOS_MIGRATION_API_VERSION": "v2"}}), "/labels", "v1"),
        (
            json!({"container": {"type": "MESOS", "docker": {"image": "i", "network": "HOST"}}}),
            "/container/docker/network",
            "MESOS",
        ),
        (
            json!({"container": {"type": "MESOS", "volumes": [{"containerPath": "/a", "mode": "RW", "persistent": {"size": 1}}]}}),
            "/container/volumes(0)/containerPath",
            "/",
        ),
        (
            json!({"container": {"type": "MESOS", "volumes": [{"containerPath": "/a", "mode": "RW"}]}}),
            "/container/volumes(0)",
            "must be one of",
        ),
    ]);
}

#[test]
fn only_given_fields_are_warned_of() {
    let value = with(json!({
        "networks": [{"mode": "container/bridge"}], "executor": "/x", "secrets": {"k": {"source": "s"}}, "role": "a",
    }));
    let app = read(&value).expect("valid");
    let body = |value: &Value| value.as_object().expect("object").clone();
    let all: Vec<String> = unacted_fields(&app, &body(&value)).into_iter().collect();
    assert_eq!(all, ["executor", "role", "secrets"], "tasks are in the networks that they want");
    assert!(unacted_fields(&app, &body(&json!({"instances": 2}))).is_empty());
    assert!(unacted_fields(&app, &body(&json!({"executor": null}))).is_empty());
}

/// Any JSON, with keys of apps more often than others.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<f64>().prop_map(|number| json!(number)),
        (-2_i64..70_000).prop_map(|number| json!(number)),
        "[a-zA-Z0-9/._ -]{0,12}".prop_map(Value::String),
        prop::sample::select(vec![
            "host",
            "container",
            "DOCKER",
            "MESOS",
            "BRIDGE",
            "COMMAND",
            "disabled",
            "udp"
        ])
        .prop_map(|text| json!(text)),
    ];
    let key = prop_oneof![
        3 => prop::sample::select(INPUT_KEYS).prop_map(str::to_owned),
        2 => prop::sample::select(vec![
            "mode", "name", "docker", "image", "type", "volumes", "portMappings", "port", "protocol", "network",
            "command", "value", "portIndex", "persistent", "containerPath", "discovery", "secret",
        ]).prop_map(str::to_owned),
        1 => ".{0,6}",
    ];
    leaf.prop_recursive(5, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            prop::collection::btree_map(key.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_json_is_read_or_refused_with_a_reason(fields in any_json()) {
        let value = match fields {
            Value::Object(fields) => with(Value::Object(fields)),
            other => other,
        };
        match read(&value) {
            Ok(app) => {
                let printed = Value::Object(definition(&app));
                let again = read(&printed).expect("what is printed can be read");
                prop_assert_eq!(Value::Object(definition(&again)), printed);
            }
            Err((malformed, invalid)) => prop_assert!(!malformed.is_empty() || !invalid.is_empty()),
        }
    }
}
