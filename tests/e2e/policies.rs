//! Policies of services as users see them: labels, weights, and what the node says of them.

use serde_json::{Value, json};
use ureq::http::Method;

use crate::harness::{Cluster, app, eventually};

const NAME: &str = "web.marathon.l4lb.thisdcos.directory:8080";

/// An app behind the VIP of `/web`, with a label.
fn behind_web(id: &str, label: &str, value: &str) -> Value {
    let mut app = app::web(id, 1);
    app["portDefinitions"][0]["labels"] = json!({ "VIP_0": "/web:8080", label: value });
    app
}

#[test]
fn a_canary_gets_its_share_and_everybody_can_see_why() {
    let cluster = Cluster::start();
    cluster.deploy(&app::web("/web", 1));
    cluster.deploy(&behind_web("/canary", "MESONET_LB_WEIGHT", "25"));
    // One that refused connections for long would have no weight for a while.
    ["/web", "/canary"].into_iter().for_each(|app| app::wait_until_serving(&cluster, app, 1));
    let vip = cluster.vip("web");
    app::who_all(vip, 2);

    let table = cluster.mesonet(&["route", "list"]).success();
    assert!(table.starts_with("datapath: proxy ("), "{table}");
    let explained = explain(&cluster, &["10.1.2.3:4567", "->", NAME]);
    assert_eq!(explained["dns"]["addresses"], json!([vip.ip()]));
    assert_eq!(explained["service"], "tcp/web@marathon:8080");
    assert_eq!(explained["choice"]["address"], Value::Null, "a draw is not certain");
    assert_eq!(candidates(&explained), [("canary".to_owned(), 25, 20.0), ("web".to_owned(), 100, 80.0)]);

    let dark = behind_web("/canary", "MESONET_LB_WEIGHT", "0");
    cluster.change("/canary", &json!({ "portDefinitions": dark["portDefinitions"] }));
    eventually("the canary has no weight", || {
        let explained = explain(&cluster, &["10.1.2.3", &vip.to_string()]);
        let found = candidates(&explained);
        if found == [("canary".to_owned(), 0, 0.0), ("web".to_owned(), 100, 100.0)] {
            Ok(())
        } else {
            Err(explained.to_string())
        }
    });
    let web = cluster.tasks("/web");
    for _ in 0..30 {
        assert_eq!(app::who(vip).expect("an answer").task, web[0]["id"].as_str().expect("id"));
    }
    let text = cluster.mesonet(&["explain", "10.1.2.3", &vip.to_string()]).success();
    assert!(text.contains("It is the only endpoint that gets connections."), "{text}");
    assert!(text.contains("its app has weight 0"), "{text}");
}

#[test]
fn explain_names_the_same_endpoint_to_a_client_of_maglev() {
    let cluster = Cluster::start();
    let mut app = behind_web("/web", "MESONET_LB_ALGORITHM", "maglev");
    app["instances"] = json!(3);
    cluster.deploy(&app);
    app::wait_until_serving(&cluster, "/web", 3);
    let vip = cluster.vip("web");
    let explained = explain(&cluster, &["127.0.0.1", &vip.to_string()]);
    assert_eq!(explained["policy"]["algorithm"], "maglev");
    let task = explained["choice"]["task"].as_str().expect("a certain choice").to_owned();
    assert_eq!(explain(&cluster, &["127.0.0.1:9", "to", NAME])["choice"]["task"], task.as_str());
}

#[test]
fn vips_have_the_form_of_dcos_net_and_a_tag() {
    let cluster = Cluster::start();
    let mut app = app::echo_udp("/echo", 1);
    let first = app["portDefinitions"][0]["labels"]["VIP_0"].clone();
    app["portDefinitions"][0]["labels"] = json!({ "VIP_0": first, "VIP_1": "127.99.9.9:53" });
    cluster.deploy(&app);
    let tasks = cluster.tasks("/echo");
    let backend = json!([{ "ip": "127.0.0.1", "port": tasks[0]["ports"][0] }]);
    assert_eq!(
        cluster.get("/v1/vips").expect(200),
        json!([
            { "vip": "echo.marathon.l4lb.thisdcos.directory:7007", "protocol": "udp", "backend": backend },
            { "vip": "127.99.9.9:53", "protocol": "udp", "backend": backend },
        ])
    );
    let not_there = cluster.get("/v1/explain?client=10.0.0.1&to=127.99.9.9:54");
    assert!(not_there.expect(404)["message"].as_str().is_some_and(|text| text.contains("127.99.9.9:54")));
    let no_client = cluster.get("/v1/explain?client=me&to=127.99.9.9:53");
    assert!(no_client.expect(400)["message"].as_str().is_some_and(|text| text.contains("'me'")));
}

#[test]
fn a_wrong_label_is_refused_by_its_name() {
    let cluster = Cluster::start();
    for (label, value, expected) in [
        ("MESONET_LB_ALGORITHM", "rr", "weighted-random, least-connections or maglev"),
        ("MESONET_LB_PANIC_PERCENT", "150", "a percentage from 0 to 100"),
        ("MESONET_LB_WIEGHT", "5", "is unknown: expected one of MESONET_LB_ALGORITHM"),
    ] {
        let app = behind_web("/web", label, value).to_string();
        let reply = cluster.send(Method::POST, "/v2/apps", Some(&app));
        assert_eq!(reply.status, 422, "{label}: {}", reply.text);
        assert!(reply.text.contains(label) && reply.text.contains(expected), "{}", reply.text);
    }
}

fn explain(cluster: &Cluster, arguments: &[&str]) -> Value {
    let output = cluster.mesonet(&[&["--json", "explain"], arguments].concat()).success();
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("no JSON ({error}): {output}"))
}

/// App, weight and chance of every candidate that has not ended, by app.
fn candidates(explained: &Value) -> Vec<(String, u64, f64)> {
    let list = explained["candidates"].as_array().expect("candidates").iter();
    let mut found: Vec<_> = list
        .filter(|each| each["state"] == "ready")
        .map(|each| {
            let task = each["task"].as_str().expect("task");
            let app = task.split(['.', '_']).next().unwrap_or(task).to_owned();
            (app, each["weight"].as_u64().expect("weight"), each["chancePercent"].as_f64().expect("chance"))
        })
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}
