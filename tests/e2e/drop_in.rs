//! mesonet in the place of mesos-dns and of dcos-net's DNS: the view comes from Mesos masters or from a file.

use serde_json::{Value, json};

use crate::harness::fake_mesos::{task, v1_agent, v1_frameworks, v1_task};
use crate::harness::{FakeMesos, NetDaemon, dns, equal, eventually, program};

const NAME: &str = "web.marathon.mesos";

#[test]
fn the_state_of_the_leading_master_is_served_as_mesos_dns_would() {
    let mesos = FakeMesos::start(3);
    let mut web = task("web.1", "web", "127.0.1.1");
    web["discovery"] = json!({
        "visibility": "FRAMEWORK", "name": "web",
        "ports": { "ports": [{ "number": 8080, "name": "http", "protocol": "tcp" }] },
    });
    let mut killed = task("old.1", "old", "127.0.1.9");
    killed["state"] = json!("TASK_KILLED");
    mesos.set_state(&[web.clone(), task("web.2", "web", "127.0.1.2"), killed.clone()]);

    let dir = tempfile::tempdir().expect("directory");
    let config = dir.path().join("config.json");
    // Those that do not lead come first, and the API's shape is that of mesos-dns.
    let text = json!({
        "masters": mesos.masters(), "refreshSeconds": 1, "ttl": 20, "domain": "mesos", "email": "x",
        "IPSources": ["netinfo", "host"], "mesosCredentials": {}, "colour": "blue", "externalOn": false,
    });
    std::fs::write(&config, text.to_string()).expect("written");
    let net = NetDaemon::start(&["--mesos-dns-config", &config.display().to_string()]);
    net.wait_for(NAME, &["127.0.1.1", "127.0.1.2"]);
    assert!(net.log().contains("colour is not known"), "{}", net.log());
    let answer = dns::dig(net.dns(), &[NAME]);
    assert!(answer.contains("flags: qr aa rd ra") && answer.contains("\t20\tIN\tA"), "{answer}");
    assert_eq!(dns::srv_ports(net.dns(), "_http._web._tcp.marathon.mesos"), [8080]);
    let leader = &mesos.masters()[2];
    let (host, port) = leader.split_once(':').expect("HOST:PORT");
    assert_eq!(dns::short(net.dns(), "leader.mesos", "A"), [host]);
    assert_eq!(dns::srv_ports(net.dns(), "_leader._tcp.mesos")[0].to_string(), port);
    assert!(dns::dig(net.dns(), &["old.marathon.mesos"]).contains("status: NXDOMAIN"));

    look_at_the_api(&net);

    // A change is there with the next poll, whichever master leads by then.
    mesos.lead(Some(0));
    mesos.set_state(&[web]);
    net.wait_for(NAME, &["127.0.1.1"]);

    // Nobody leads: what is known stays.
    mesos.lead(None);
    eventually("the failure is counted", || match net.metric("mesonet_source_failures_total")? {
        0.0 => Err("none".to_owned()),
        _ => equal(&net.metric("mesonet_view_connected")?, &0.0),
    });
    net.wait_for(NAME, &["127.0.1.1"]);
    mesos.lead(Some(1));
    mesos.set_state(&[task("web.3", "web", "127.0.1.3")]);
    net.wait_for(NAME, &["127.0.1.3"]);
    eventually("the view is confirmed", || equal(&net.metric("mesonet_view_connected")?, &1.0));
}

/// The HTTP API of mesos-dns, as `curl` sees it.
#[track_caller]
fn look_at_the_api(net: &NetDaemon) {
    assert_eq!(net.curl("/v1/version")["Service"], "Mesos-DNS");
    let config = net.curl("/v1/config");
    for (key, expected) in [
        ("Domain", json!("mesos")),
        ("TTL", json!(20)),
        ("RefreshSeconds", json!(1)),
        ("IPSources", json!(["netinfo", "host"])),
        ("ExternalOn", json!(false)),
        ("RecurseOn", json!(true)),
        ("EnforceRFC952", json!(false)),
        ("SOAMname", json!("ns1.mesos.")),
        ("SOARname", json!("root.ns1.mesos.")),
        ("SOAMinttl", json!(20)),
        ("HttpOn", json!(true)),
    ] {
        assert_eq!(config[key], expected, "{key}: {config}");
    }
    let host = |ip: &str| json!({ "host": "web.marathon.mesos.", "ip": ip });
    for path in ["/v1/hosts/web.marathon.mesos", "/v1/hosts/WEB.marathon.mesos."] {
        assert_eq!(net.curl(path), json!([host("127.0.1.1"), host("127.0.1.2")]), "{path}");
    }
    assert_eq!(net.curl("/v1/hosts/web.*.marathon.mesos"), net.curl("/v1/hosts/web.marathon.mesos"));
    for path in ["/v1/hosts/nothing.mesos", "/v1/hosts/a%20b.marathon.mesos", "/v1/hosts/a..mesos"] {
        assert_eq!(net.curl(path), json!([{ "host": "", "ip": "" }]), "{path}");
    }
    let service = &net.curl("/v1/services/_http._web._tcp.marathon.mesos")[0];
    assert_eq!((&service["port"], &service["ip"]), (&json!("8080"), &json!("127.0.1.1")));
    assert_eq!(service["service"], "_http._web._tcp.marathon.mesos");
    let canonical = service["host"].as_str().expect("host");
    assert!(canonical.starts_with("web-") && canonical.ends_with("-s0.marathon.mesos."), "{canonical}");
    let nothing = json!([{ "service": "", "host": "", "ip": "", "port": "" }]);
    assert_eq!(net.curl("/v1/services/_nothing._tcp.mesos"), nothing);

    let transfer = net.curl("/v1/axfr");
    assert_eq!(transfer["Domain"], "mesos");
    assert_eq!(transfer["Records"]["As"]["web.marathon.mesos."], json!(["127.0.1.1", "127.0.1.2"]));
    let ports = &transfer["Records"]["SRVs"]["_http._web._tcp.marathon.mesos."];
    assert_eq!(ports, &json!([format!("{canonical}:8080")]));
    let others = transfer["Records"]["As"].as_object().expect("names").keys();
    assert!(others.clone().all(|name| name.ends_with(".mesos.")), "{others:?}");

    let records = net.curl("/v1/records");
    let expected =
        json!({ "name": "web.marathon.agentip.dcos.thisdcos.directory.", "host": "127.0.0.2", "rtype": "A" });
    assert!(records.as_array().expect("list").contains(&expected), "{records}");
    let frameworks = net.curl("/v1/enumerate");
    let task = &frameworks["frameworks"][0]["tasks"][0];
    assert_eq!((&frameworks["frameworks"][0]["name"], &task["id"]), (&json!("marathon"), &json!("web.1")));
    let of_task = json!({ "name": "web.marathon.mesos.", "host": "127.0.1.1", "rtype": "A" });
    assert!(task["records"].as_array().expect("list").contains(&of_task), "{task}");
}

#[test]
fn the_events_of_the_leading_master_are_followed_over_a_failover() {
    let mesos = FakeMesos::start(2);
    let tasks = |tasks: &[Value]| json!({ "tasks": tasks });
    mesos.set_subscribed(json!({
        "get_agents": { "agents": [v1_agent()] },
        "get_frameworks": v1_frameworks(),
        "get_tasks": tasks(&[v1_task("web.1", "web", "127.0.1.1")]),
    }));
    let source = format!("mesos://{}", mesos.masters().join(","));
    let net = NetDaemon::start(&["--source", &source]);
    net.wait_for(NAME, &["127.0.1.1"]);
    mesos.send(&json!({
        "type": "TASK_ADDED", "task_added": { "task": v1_task("web.2", "web", "127.0.1.2") },
    }));
    net.wait_for(NAME, &["127.0.1.1", "127.0.1.2"]);
    mesos.send(&json!({ "type": "HEARTBEAT" }));
    mesos.send(&json!({ "type": "TASK_UPDATED", "task_updated": {
        "framework_id": { "value": "f" }, "state": "TASK_FINISHED",
        "status": { "task_id": { "value": "web.1" }, "agent_id": { "value": "c-S0" }, "state": "TASK_FINISHED" },
    }}));
    net.wait_for(NAME, &["127.0.1.2"]);

    // The next leader has not heard of the agent yet. Names stay until it has.
    mesos.set_subscribed(json!({
        "get_agents": { "agents": [], "recovered_agents": [{ "id": { "value": "c-S0" }, "hostname": "127.0.0.2" }] },
        "get_frameworks": v1_frameworks(),
    }));
    mesos.lead(Some(0));
    eventually("it has subscribed to the next leader", || equal(&mesos.subscribers(), &1));
    eventually("that is not known to be the whole cluster", || {
        equal(&net.metric("mesonet_view_connected")?, &0.0)
    });
    mesos.send(&json!({ "type": "AGENT_ADDED", "agent_added": { "agent": v1_agent() } }));
    net.wait_for(NAME, &["127.0.1.2"]);
    mesos.send(&json!({
        "type": "TASK_ADDED", "task_added": { "task": v1_task("web.3", "web", "127.0.1.3") },
    }));
    // Ten seconds after the last agent has come back, what it runs is known; web.2 is gone.
    net.wait_for(NAME, &["127.0.1.3"]);
    eventually("the view is confirmed", || equal(&net.metric("mesonet_view_connected")?, &1.0));
    assert_eq!(dns::short(net.dns(), "leader.mesos", "A"), ["127.0.0.1"]);
}

#[test]
fn a_stream_that_falls_silent_is_begun_anew() {
    let mesos = FakeMesos::start(1);
    mesos.set_subscribed(json!({
        "get_agents": { "agents": [v1_agent()] },
        "get_frameworks": v1_frameworks(),
        "get_tasks": { "tasks": [v1_task("web.1", "web", "127.0.1.1")] },
    }));
    // A tenth of a second between heartbeats, which never come.
    mesos.set_heartbeat_interval(0.1);
    let net = NetDaemon::start(&["--source", &format!("mesos://{}", mesos.masters()[0])]);
    net.wait_for(NAME, &["127.0.1.1"]);
    eventually("it has subscribed again", || match mesos.subscribers() {
        count if count >= 2 => Ok(()),
        count => Err(format!("{count} subscriptions")),
    });
    assert!(net.log().contains("did not say anything within 0.3 s"), "{}", net.log());
    net.wait_for(NAME, &["127.0.1.1"]);
}

#[test]
fn a_saved_state_and_a_saved_view_are_served_and_read_again() {
    let mesos = FakeMesos::start(1);
    mesos.set_state(&[task("web.1", "web", "127.0.1.1")]);
    let dir = tempfile::tempdir().expect("directory");
    let file = dir.path().join("saved.json");
    let source = format!("file:{}", file.display());
    let mut net = NetDaemon::start(&["--source", &source]);
    assert!(dns::dig(net.dns(), &[NAME]).contains("status: SERVFAIL"), "nothing is known yet");
    let state =
        program::run("curl", &["-sS", &format!("http://{}/master/state", mesos.masters()[0])]).success();
    std::fs::write(&file, &state).expect("written");
    net.wait_for(NAME, &["127.0.1.1"]);

    // What it would serve is printed without it as well.
    let printed = |arguments: &[&str]| mesonet(&[&["dns", "records"], arguments].concat());
    let by_daemon = printed(&["--http", &net.api().to_string()]);
    let records = |text: &str| {
        let lines = text.lines().filter(|line| !line.contains(" SOA ") && !line.contains("ns1."));
        lines.map(str::to_owned).collect::<Vec<String>>()
    };
    let from_file = printed(&["--source", &source]);
    assert_eq!(records(&by_daemon), records(&from_file));
    let from_master = printed(&["--source", &format!("mesos-state://{}", mesos.masters()[0])]);
    assert_eq!(records(&from_master), records(&from_file));
    assert!(records(&from_file).contains(&"web.marathon.mesos. 5 IN A 127.0.1.1".to_owned()), "{from_file}");

    let as_json: Value = serde_json::from_str(&printed(&["--json", "--source", &source])).expect("JSON");
    let expected = json!({ "name": "web.marathon.mesos.", "host": "127.0.1.1", "rtype": "A" });
    assert!(as_json.as_array().expect("list").contains(&expected), "{as_json}");

    // What is no state changes nothing; after a crash, the last view is served until there is a state again.
    std::fs::write(&file, "{").expect("written");
    eventually("the failure is counted", || match net.metric("mesonet_source_failures_total")? {
        failures if failures >= 2.0 => Ok(()),
        failures => Err(failures.to_string()),
    });
    net.wait_for(NAME, &["127.0.1.1"]);
    net.crash_and_start(
        crate::harness::cluster::mesonet(),
        &[&crate::harness::net_daemon::ANY_PORTS[..], &["--source", &source]].concat(),
    );
    net.wait_for(NAME, &["127.0.1.1"]);
    std::fs::write(&file, state.replace("127.0.1.1", "127.0.1.7")).expect("written");
    net.wait_for(NAME, &["127.0.1.7"]);
}

#[test]
fn what_a_configuration_forbids_is_not_done() {
    let mesos = FakeMesos::start(1);
    mesos.set_state(&[task("web.1", "web", "127.0.1.1")]);
    let dir = tempfile::tempdir().expect("directory");
    let config = dir.path().join("config.json");
    let text = json!({ "masters": mesos.masters(), "enumerationOn": false, "recurseOn": false });
    std::fs::write(&config, text.to_string()).expect("written");
    let net = NetDaemon::start(&["--mesos-dns-config", &config.display().to_string()]);
    net.wait_for(NAME, &["127.0.1.1"]);
    assert_eq!(net.curl("/v1/hosts/web.marathon.mesos")[0]["ip"], "127.0.1.1");
    assert_eq!(net.curl("/v1/config")["EnumerationOn"], json!(false));
    let code = |path: &str| {
        let url = format!("http://{}{path}", net.api());
        let arguments = ["-sS", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}", &url];
        program::run("curl", &arguments).success()
    };
    for path in ["/v1/enumerate", "/v1/axfr", "/v1/records", "/v1/zone"] {
        assert_eq!(code(path), "404", "{path}");
    }
    assert_eq!(code("/v1/hosts/web.marathon.mesos/ports"), "501");
    let answer = dns::dig(net.dns(), &[NAME]);
    assert!(answer.contains("flags: qr aa rd;"), "{answer}");
}

#[test]
fn kdig_gets_the_same_answer_over_every_transport() {
    let mesos = FakeMesos::start(1);
    mesos.set_state(&[task("web.1", "web", "127.0.1.1")]);
    let dir = tempfile::tempdir().expect("directory");
    let made = rcgen::generate_simple_self_signed(vec!["dns.example".to_owned()]).expect("certificate");
    let file = |name: &str, content: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.display().to_string()
    };
    let (chain, key) =
        (file("chain.pem", made.cert.pem()), file("key.pem", made.signing_key.serialize_pem()));
    let source = format!("mesos-state://{}", mesos.masters()[0]);
    let certificate = ["--dns-certificate", &chain, "--dns-key", &key];
    let listen = ["--dns-tls", "127.0.0.1:0", "--dns-https", "127.0.0.1:0", "--dns-quic", "127.0.0.1:0"];
    let net = NetDaemon::start(&[&["--source", &source], &certificate[..], &listen].concat());
    net.wait_for(NAME, &["127.0.1.1"]);

    let kdig = |port: u16, options: &[&str]| {
        let port = port.to_string();
        let fixed = ["@127.0.0.1", "-p", &port, "+retry=0", "+timeout=10", "+short", NAME];
        program::run("kdig", &[&fixed, options].concat())
    };
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(kdig(net.dns().port(), &[transport]).success(), "127.0.1.1\n", "{transport}");
    }
    let authority = format!("+tls-ca={chain}");
    for (transport, address) in ["+tls", "+https", "+quic"].into_iter().zip(net.encrypted()) {
        let port = address.expect("it is served").port();
        // The transport last: what says of certificates would choose TLS.
        let answer = kdig(port, &[&authority, "+tls-hostname=dns.example", transport]);
        assert_eq!(answer.success(), "127.0.1.1\n", "{transport}");
        let stranger = kdig(port, &[&authority, "+tls-hostname=other.example", transport]);
        assert!(!stranger.stdout.contains("127.0.1.1"), "{transport}: the certificate is looked at");
    }
}

#[test]
fn what_cannot_be_honoured_is_said_at_the_start() {
    let dir = tempfile::tempdir().expect("directory");
    let config = dir.path().join("config.json");
    std::fs::write(&config, r#"{"zk": "zk://127.0.0.1:2181/mesos", "dnsOn": false}"#).expect("written");
    let refused = |arguments: &[&str]| {
        let mut command = crate::harness::cluster::mesonet();
        program::outcome("mesonet", command.arg("net").args(arguments).output()).failure(1)
    };
    let said = refused(&["--mesos-dns-config", &config.display().to_string()]);
    assert!(said.contains("Zk: refused") && said.contains("DnsOn: refused"), "{said}");
    let said = refused(&[
        "--source",
        "file:/nowhere",
        "--dir",
        &dir.path().display().to_string(),
        "--resolv-conf",
        "/nowhere/resolv.conf",
        "--dns",
        "127.0.0.1:0",
        "--dns-http",
        "off",
        "--http",
        "127.0.0.1:0",
    ]);
    assert!(said.contains("can only name servers at port 53: give --dns-address"), "{said}");
}

#[track_caller]
fn mesonet(arguments: &[&str]) -> String {
    program::outcome("mesonet", crate::harness::cluster::mesonet().args(arguments).output()).success()
}
