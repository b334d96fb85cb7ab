//! The records of states: `/master/state` in, zone out. The rules are those of spec/dcos-networking.md §1.2 to §1.4.

use mesonet_dns_zone::{Config, Data, IpSource, LabelRule, Name, TaskChoice, Zone, ZoneFollower};
use mesonet_mesos::{Options, StateFollower};
use mesonet_model::{ClusterView, Delta};

use crate::state::NOW;

/// The settings of mesos-dns.
pub fn mesos_dns() -> Config {
    Config { task_choice: TaskChoice::Running, ttl: 60, ..Config::default() }
}

pub fn zone_of(view: &ClusterView, config: &Config) -> Zone {
    let mut follower = ZoneFollower::new(config, &[]).expect("settings");
    follower.apply(view, &Delta::between(&ClusterView::empty(view.cluster.clone()), view));
    follower.zone()
}

/// The records of the mesos-dns zone without SOA and NS, each as `owner type value` below the domain, sorted.
pub fn records(view: &ClusterView, config: &Config) -> Vec<String> {
    let domain = Name::root().below("mesos").expect("domain");
    let short = |name: &Name| name.to_string().trim_end_matches("mesos.").trim_end_matches('.').to_owned();
    let zone = zone_of(view, config);
    let mut lines: Vec<String> = zone
        .transfer(&domain)
        .expect("the zone is served")
        .filter_map(|record| {
            let owner = short(&record.owner);
            match &record.data {
                Data::A(address) => Some(format!("{owner} A {address}")),
                Data::Aaaa(address) => Some(format!("{owner} AAAA {address}")),
                Data::Srv { port, target, .. } => Some(format!("{owner} SRV {}:{port}", short(target))),
                _ => None,
            }
        })
        .collect();
    lines.sort();
    lines
}

fn view(state: &str, masters: &[&str]) -> ClusterView {
    let masters = masters.iter().map(|&master| master.to_owned()).collect();
    let mut follower = StateFollower::new(Options { masters, ..Options::default() });
    follower.apply_state(state.as_bytes(), NOW).expect("a state")
}

#[track_caller]
fn check(found: &[String], expected: &str) {
    let mut expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    expected.sort_unstable();
    assert_eq!(found.join("\n"), expected.join("\n"));
}

/// A state with one agent, `10.0.0.2`, and one framework of this name with these tasks.
fn with_tasks(framework: &str, tasks: &str) -> String {
    format!(
        r#"{{"leader": "master@10.0.0.1:5050",
            "slaves": [{{"id": "c-S0", "pid": "slave(1)@10.0.0.2:5051", "hostname": "10.0.0.2"}}],
            "frameworks": [{{"id": "f", "name": "{framework}", "hostname": "", "tasks": [{tasks}]}}]}}"#
    )
}

/// The records of tasks alone.
fn task_records(framework: &str, tasks: &str, config: &Config) -> Vec<String> {
    let view = view(&with_tasks(framework, tasks), &[]);
    let others = ["leader ", "master", "slave ", "_slave._tcp ", "_leader."];
    let is_own = |line: &String| others.iter().all(|other| !line.starts_with(other));
    records(&view, config).into_iter().filter(is_own).collect()
}

#[test]
fn masters_agents_and_frameworks_are_named() {
    let state = r#"{"leader": "master@10.0.0.9:5050", "slaves": [
        {"id": "x-S0", "pid": "slave(1)@10.0.0.2:5051", "hostname": "a", "active": true},
        {"id": "x-S1", "pid": "slave(1)@[fd00::3]:5052", "hostname": "b", "active": false}],
      "frameworks": [
        {"id": "1", "name": "Chronos Dev_2", "pid": "scheduler@10.1.0.1:4400", "hostname": "h", "active": true},
        {"id": "2", "name": "http.fw", "hostname": "10.1.0.2", "active": false},
        {"id": "3", "name": "mute", "active": true},
        {"id": "4", "name": "http.fw", "hostname": "fd00::4", "active": true}],
      "completed_frameworks": [{"id": "5", "name": "past", "hostname": "10.1.0.5"}]}"#;
    let view = view(state, &["10.0.0.8:5050", "10.0.0.8:5050", "10.0.0.7:5050"]);
    check(
        &records(&view, &mesos_dns()),
        "_framework._tcp.chronosdev-2 SRV chronosdev-2:4400
         _leader._tcp SRV leader:5050
         _leader._udp SRV leader:5050
         _slave._tcp SRV slave:5051
         _slave._tcp SRV slave:5052
         chronosdev-2 A 10.1.0.1
         http.fw A 10.1.0.2
         http.fw AAAA fd00::4
         leader A 10.0.0.9
         master A 10.0.0.7
         master A 10.0.0.8
         master A 10.0.0.9
         master0 A 10.0.0.8
         master1 A 10.0.0.7
         master2 A 10.0.0.9
         slave A 10.0.0.2
         slave AAAA fd00::3",
    );
}

/// The rows of mesos-dns' own table: the list, the leader, and who has which number.
#[test]
fn masters_are_numbered_as_listed() {
    for (masters, leader, expected) in [
        (vec!["0.0.0.8:9"], "5@0.0.0.6:7", "master0 A 0.0.0.8, master1 A 0.0.0.6"),
        (vec!["0.0.0.6:7", "0.0.0.8:9"], "5@0.0.0.6:7", "master0 A 0.0.0.6, master1 A 0.0.0.8"),
        (vec!["0.0.0.8:9", "0.0.0.6:7", "0.0.0.8:9"], "5@0.0.0.6:7", "master0 A 0.0.0.8, master1 A 0.0.0.6"),
        (vec![], "5@0.0.0.6:7", "master0 A 0.0.0.6"),
        // The leader's address under another port is no other master.
        (vec!["0.0.0.6:8", "0.0.0.8:9"], "5@0.0.0.6:7", "master0 A 0.0.0.8, master1 A 0.0.0.6"),
        (vec!["[2001:db8::1]:0"], "5@[::2]:7", "master0 AAAA 2001:db8::1, master1 AAAA ::2"),
        (vec!["nonsense", "0.0.0.8"], "5@0.0.0.6:7", "master0 A 0.0.0.6"),
        (vec!["0.0.0.8:9"], "@", ""),
        (vec!["0.0.0.8:9"], "1@", ""),
        (vec!["0.0.0.8:9"], "@2", ""),
        (vec!["0.0.0.8:9"], "3@4", ""),
        (vec!["0.0.0.8:9"], "no pid", ""),
    ] {
        let view = view(&format!(r#"{{"leader": "{leader}"}}"#), &masters);
        let found = records(&view, &mesos_dns());
        let is_numbered = |line: &&String| line.starts_with("master") && !line.starts_with("master ");
        let numbered: Vec<&str> = found.iter().filter(is_numbered).map(String::as_str).collect();
        assert_eq!(numbered.join(", "), expected, "{masters:?} {leader}");
        assert!(!expected.is_empty() || found.is_empty(), "{leader}: {found:?}");
    }
}

#[test]
fn tasks_without_discovery_have_ports_below_both_names() {
    let task = r#"{"id": "test", "name": "Web.Server_1", "slave_id": "c-S0", "state": "TASK_RUNNING",
        "resources": {"cpus": 1, "ports": "[31000-31001, 31005-31005]"}}"#;
    check(
        &task_records("marathon", task, &mesos_dns()),
        "_web-server-1._tcp.marathon SRV web-server-1-iffe9-s0.marathon.slave:31000
         _web-server-1._tcp.marathon SRV web-server-1-iffe9-s0.marathon.slave:31001
         _web-server-1._tcp.marathon SRV web-server-1-iffe9-s0.marathon.slave:31005
         _web-server-1._tcp.marathon.slave SRV web-server-1-iffe9-s0.marathon.slave:31000
         _web-server-1._tcp.marathon.slave SRV web-server-1-iffe9-s0.marathon.slave:31001
         _web-server-1._tcp.marathon.slave SRV web-server-1-iffe9-s0.marathon.slave:31005
         _web-server-1._udp.marathon SRV web-server-1-iffe9-s0.marathon.slave:31000
         _web-server-1._udp.marathon SRV web-server-1-iffe9-s0.marathon.slave:31001
         _web-server-1._udp.marathon SRV web-server-1-iffe9-s0.marathon.slave:31005
         _web-server-1._udp.marathon.slave SRV web-server-1-iffe9-s0.marathon.slave:31000
         _web-server-1._udp.marathon.slave SRV web-server-1-iffe9-s0.marathon.slave:31001
         _web-server-1._udp.marathon.slave SRV web-server-1-iffe9-s0.marathon.slave:31005
         web-server-1-iffe9-s0.marathon A 10.0.0.2
         web-server-1-iffe9-s0.marathon.slave A 10.0.0.2
         web-server-1.marathon A 10.0.0.2
         web-server-1.marathon.slave A 10.0.0.2",
    );
}

#[test]
fn discovery_names_are_served_as_given_and_as_one_label() {
    let task = r#"{"id": "test", "name": "ignored", "slave_id": "c-S0", "state": "TASK_RUNNING",
        "resources": {"ports": "[31000-31000]"},
        "statuses": [{"state": "TASK_RUNNING", "timestamp": 1.5, "container_status": {"network_infos": [
            {"ip_addresses": [{"ip_address": "9.0.1.2"}, {"ip_address": "fd01::2"}]}]}}],
        "discovery": {"visibility": "CLUSTER", "name": "nginx.web", "environment": "prod", "ports": {"ports": [
            {"number": 80, "name": "HTTP_main", "protocol": "TCP"}, {"number": 53},
            {"number": 9, "protocol": "sctp", "name": ""}, {"number": 0, "protocol": "udp"}]}}}"#;
    check(
        &task_records("marathon", task, &mesos_dns()),
        "_http-main._nginx-web._tcp.marathon SRV nginx-web-iffe9-s0.marathon:80
         _http-main._nginx.web._tcp.marathon SRV nginx.web-iffe9-s0.marathon:80
         _nginx-web._sctp.marathon SRV nginx-web-iffe9-s0.marathon:9
         _nginx-web._tcp.marathon SRV nginx-web-iffe9-s0.marathon:53
         _nginx-web._tcp.marathon SRV nginx-web-iffe9-s0.marathon:80
         _nginx-web._tcp.marathon.slave SRV nginx-web-iffe9-s0.marathon.slave:31000
         _nginx-web._udp.marathon SRV nginx-web-iffe9-s0.marathon:0
         _nginx-web._udp.marathon SRV nginx-web-iffe9-s0.marathon:53
         _nginx-web._udp.marathon.slave SRV nginx-web-iffe9-s0.marathon.slave:31000
         _nginx.web._sctp.marathon SRV nginx.web-iffe9-s0.marathon:9
         _nginx.web._tcp.marathon SRV nginx.web-iffe9-s0.marathon:53
         _nginx.web._tcp.marathon SRV nginx.web-iffe9-s0.marathon:80
         _nginx.web._tcp.marathon.slave SRV nginx.web-iffe9-s0.marathon.slave:31000
         _nginx.web._udp.marathon SRV nginx.web-iffe9-s0.marathon:0
         _nginx.web._udp.marathon SRV nginx.web-iffe9-s0.marathon:53
         _nginx.web._udp.marathon.slave SRV nginx.web-iffe9-s0.marathon.slave:31000
         nginx-web-iffe9-s0.marathon A 9.0.1.2
         nginx-web-iffe9-s0.marathon AAAA fd01::2
         nginx-web-iffe9-s0.marathon.slave A 10.0.0.2
         nginx-web.marathon A 9.0.1.2
         nginx-web.marathon AAAA fd01::2
         nginx-web.marathon.slave A 10.0.0.2
         nginx.web-iffe9-s0.marathon A 9.0.1.2
         nginx.web-iffe9-s0.marathon AAAA fd01::2
         nginx.web-iffe9-s0.marathon.slave A 10.0.0.2
         nginx.web.marathon A 9.0.1.2
         nginx.web.marathon AAAA fd01::2
         nginx.web.marathon.slave A 10.0.0.2",
    );
}

#[test]
fn only_running_tasks_on_known_agents_are_named_whatever_their_health() {
    let task = |id: &str, state: &str, agent: &str, healthy: &str| {
        format!(
            r#"{{"id": "{id}", "name": "{id}", "slave_id": "{agent}", "state": "{state}",
                "health_check": {{}}, "statuses": [{{"state": "TASK_RUNNING", "healthy": {healthy}}}]}}"#
        )
    };
    let tasks = [
        task("well", "TASK_RUNNING", "c-S0", "true"),
        task("ill", "TASK_RUNNING", "c-S0", "false"),
        task("unknown", "TASK_RUNNING", "c-S0", "null"),
        task("lost-agent", "TASK_RUNNING", "c-S9", "true"),
        task("staging", "TASK_STAGING", "c-S0", "true"),
        task("starting", "TASK_STARTING", "c-S0", "true"),
        task("killing", "TASK_KILLING", "c-S0", "true"),
        task("killed", "TASK_KILLED", "c-S0", "true"),
        task("finished", "TASK_FINISHED", "c-S0", "true"),
        task("unreachable", "TASK_UNREACHABLE", "c-S0", "true"),
        task("odd", "TASK_OF_THE_FUTURE", "c-S0", "true"),
    ];
    let found = task_records("marathon", &tasks.join(","), &mesos_dns());
    let named: Vec<&str> =
        found.iter().filter_map(|line| line.strip_suffix(".marathon A 10.0.0.2")).collect();
    let plain: Vec<&str> = named.into_iter().filter(|name| !name.ends_with("-s0")).collect();
    assert_eq!(plain, ["ill", "unknown", "well"]);
}

#[test]
fn tasks_and_frameworks_of_one_name_share_it() {
    let state = r#"{"leader": "master@10.0.0.1:5050",
        "slaves": [{"id": "c-S0", "pid": "s@10.0.0.2:5051"}, {"id": "c-S1", "pid": "s@10.0.0.3:5051"}],
        "frameworks": [
          {"id": "1", "name": "marathon", "tasks": [
            {"id": "a", "name": "web", "slave_id": "c-S0", "state": "TASK_RUNNING"},
            {"id": "b", "name": "web", "slave_id": "c-S1", "state": "TASK_RUNNING"},
            {"id": "a", "name": "twin", "slave_id": "c-S1", "state": "TASK_RUNNING"}]},
          {"id": "2", "name": "marathon", "tasks": [
            {"id": "a", "name": "web", "slave_id": "c-S1", "state": "TASK_RUNNING"}]}]}"#;
    let found = records(&view(state, &[]), &mesos_dns());
    let found: Vec<String> = found.into_iter().filter(|line| line.contains(".marathon A")).collect();
    check(
        &found,
        "twin-o556e-s1.marathon A 10.0.0.3
         twin.marathon A 10.0.0.3
         web-78mt6-s1.marathon A 10.0.0.3
         web-o556e-s0.marathon A 10.0.0.2
         web-o556e-s1.marathon A 10.0.0.3
         web.marathon A 10.0.0.2
         web.marathon A 10.0.0.3",
    );
}

/// Statuses, IP sources, and the addresses chosen.
#[test]
fn addresses_come_from_the_first_source_that_has_one() {
    let running = |timestamp: &str, rest: &str| {
        format!(r#"{{"state": "TASK_RUNNING", "timestamp": {timestamp}{rest}}}"#)
    };
    let infos = |infos: &str| format!(r#", "container_status": {{"network_infos": [{infos}]}}"#);
    let label = |key: &str, address: &str| {
        format!(r#", "labels": [{{"key": "{key}.NetworkSettings.IPAddress", "value": "{address}"}}]"#)
    };
    let plain = infos(r#"{"ip_addresses": [{"ip_address": "1.2.3.4"}]}"#);
    let both = infos(r#"{"ip_addresses": [{"ip_address": "1.2.3.4"}, {"ip_address": "fd01:b::1"}]}"#);
    let two = infos(
        r#"{"ip_addresses": [{"ip_address": "1.2.3.4"}]}, {"ip_addresses": [{"ip_address": "2.3.4.5"}]}"#,
    );
    let old = infos(r#"{"ip_address": "1.2.3.4"}"#);
    let old_and_new = infos(r#"{"ip_address": "1.2.3.4", "ip_addresses": [{"ip_address": "1.2.4.8"}]}"#);
    let bad = infos(r#"{"ip_addresses": [{"ip_address": "bogus"}, {"protocol": "IPv4"}]}, {}"#);
    let mapped = infos(r#"{"ip_addresses": [{"ip_address": "::ffff:1.2.3.4"}]}"#);
    let twice = r#", "labels": [
        {"key": "Docker.NetworkSettings.IPAddress", "value": "1.1.1.1"},
        {"key": "Docker.NetworkSettings.IPAddress", "value": "1.1.1.2"}]"#;
    for (statuses, sources, expected) in [
        (vec![running("1", &plain)], "netinfo host", "1.2.3.4"),
        (vec![running("1", &plain)], "host netinfo", "10.0.0.2"),
        (vec![running("1", &plain)], "docker mesos", ""),
        (vec![running("1", &both)], "netinfo", "1.2.3.4 fd01:b::1"),
        (vec![running("1", &two)], "netinfo", "1.2.3.4 2.3.4.5"),
        (vec![running("1", &old)], "netinfo", "1.2.3.4"),
        (vec![running("1", &old_and_new)], "netinfo", "1.2.4.8"),
        (vec![running("1", &bad)], "netinfo host", "10.0.0.2"),
        (vec![running("1", &mapped)], "netinfo", "1.2.3.4"),
        (vec![running("1", &label("Docker", "7.7.7.7"))], "mesos docker host", "7.7.7.7"),
        (vec![running("1", &label("MesosContainerizer", "8.8.4.4"))], "mesos docker host", "8.8.4.4"),
        (vec![running("1", &label("Docker", "junk"))], "docker host", "10.0.0.2"),
        (vec![running("1", twice)], "docker", "1.1.1.1 1.1.1.2"),
        // The latest status that says that it runs counts, with what it has.
        (vec![running("2", &plain), running("1", &two)], "netinfo host", "1.2.3.4"),
        (vec![running("1", &two), running("2", &plain)], "netinfo host", "1.2.3.4"),
        (vec![running("1", &plain), running("2", "")], "netinfo host", "10.0.0.2"),
        (
            vec![running("1", &plain), running("2", &two).replace("TASK_RUNNING", "TASK_STARTING")],
            "netinfo host",
            "1.2.3.4",
        ),
        (vec![], "netinfo mesos host", "10.0.0.2"),
        (vec![], "netinfo mesos", ""),
    ] {
        let task = format!(
            r#"{{"id": "t", "name": "web", "slave_id": "c-S0", "state": "TASK_RUNNING", "statuses": [{}]}}"#,
            statuses.join(",")
        );
        let ip_sources = sources.split(' ').filter_map(IpSource::named).collect();
        let found = task_records("fw", &task, &Config { ip_sources, ..mesos_dns() });
        let of =
            |line: &str| line.strip_prefix("web.fw A").map(|rest| rest.rsplit(' ').next().map(str::to_owned));
        let addresses: Vec<String> = found.iter().filter_map(|line| of(line).flatten()).collect();
        assert_eq!(addresses.join(" "), expected, "{statuses:?} {sources}");
        assert!(found.contains(&"web.fw.slave A 10.0.0.2".to_owned()), "{found:?}");
    }
}

#[test]
fn a_task_can_choose_its_ip_sources() {
    let task = |label: &str| {
        format!(
            r#"{{"id": "t", "name": "web", "slave_id": "c-S0", "state": "TASK_RUNNING",
                "labels": [{{"key": "MESONET_DNS_IP_SOURCES", "value": "{label}"}}],
                "statuses": [{{"state": "TASK_RUNNING", "container_status": {{"network_infos":
                    [{{"ip_addresses": [{{"ip_address": "1.2.3.4"}}]}}]}}}}]}}"#
        )
    };
    for (label, expected) in
        [("host, netinfo", "10.0.0.2"), ("netinfo", "1.2.3.4"), ("nonsense", "1.2.3.4"), ("", "1.2.3.4")]
    {
        let found = task_records("fw", &task(label), &mesos_dns());
        assert!(found.contains(&format!("web.fw A {expected}")), "{label}: {found:?}");
    }
}

/// Names, and the name of the task's record in both modes; nothing where no name is left.
#[test]
fn odd_names_become_what_mesos_dns_makes_of_them() {
    let long = "a".repeat(70);
    let cut = format!("{}.fw", "a".repeat(63));
    let cut_short = format!("{}.fw", "a".repeat(24));
    for (name, rfc1123, rfc952) in [
        ("9lives", "9lives.fw", "lives.fw"),
        ("-x_-", "x.fw", "x.fw"),
        ("UPPER case", "uppercase.fw", "uppercase.fw"),
        ("日本", "", ""),
        ("", "", ""),
        ("...", "", ""),
        (&long, &cut, &cut_short),
    ] {
        let task = format!(r#"{{"id": "t", "name": "{name}", "slave_id": "c-S0", "state": "TASK_RUNNING"}}"#);
        for (label_rule, expected) in [(LabelRule::Rfc1123, rfc1123), (LabelRule::Rfc952, rfc952)] {
            let found = task_records("fw", &task, &Config { label_rule, ..mesos_dns() });
            let plain = found.iter().filter_map(|line| line.strip_suffix(" A 10.0.0.2"));
            let plain: Vec<&str> =
                plain.filter(|name| !name.contains("-") && !name.ends_with(".slave")).collect();
            assert_eq!(plain.join(" "), expected, "{name} {label_rule:?}");
        }
    }
    // What discovery information says is served as it is, too, in lower case.
    for (name, expected) in [
        ("My.App", "my.app.fw my-app.fw"),
        ("/web", "/web.fw web.fw"),
        ("a b", "a\\032b.fw ab.fw"),
        ("under_score", "under_score.fw under-score.fw"),
        ("a..b", "a--b.fw"),
    ] {
        let task = format!(
            r#"{{"id": "t", "name": "x", "slave_id": "c-S0", "state": "TASK_RUNNING", "discovery": {{"name": "{name}"}}}}"#
        );
        let found = task_records("fw", &task, &mesos_dns());
        for name in expected.split(' ') {
            assert!(found.contains(&format!("{name} A 10.0.0.2")), "{name}: {found:?}");
        }
        assert_eq!(found.len(), expected.split(' ').count() * 4, "{name}: {found:?}");
    }
}

#[test]
fn framework_names_keep_their_dots() {
    let task = r#"{"id": "t", "name": "web", "slave_id": "c-S0", "state": "TASK_RUNNING"}"#;
    for (framework, label_rule, expected) in [
        ("marathon-0.6.0-dev", LabelRule::Rfc1123, "web.marathon-0.6.0-dev"),
        ("marathon-0.6.0-dev", LabelRule::Rfc952, "web.marathon-0.dev"),
        (".My..Fw_1.", LabelRule::Rfc1123, "web.my.fw-1"),
        ("(@ host . com", LabelRule::Rfc1123, "web.host.com"),
    ] {
        let found = task_records(framework, task, &Config { label_rule, ..mesos_dns() });
        assert!(found.contains(&format!("{expected} A 10.0.0.2")), "{framework}: {found:?}");
    }
    for framework in ["", "...", "日本"] {
        assert_eq!(task_records(framework, task, &mesos_dns()), [""; 0], "{framework}");
    }
}

#[test]
fn one_thing_that_cannot_be_read_costs_only_itself() {
    let state = r#"{"leader": "master@10.0.0.1:5050",
        "slaves": [{"id": "c-S0", "pid": "s@10.0.0.2:5051"}, {"pid": "no id"}, 5, {"id": "c-S1", "pid": 7},
                   {"id": "c-S2", "hostname": "10.0.0.4"}, {"id": "c-S3", "pid": "", "hostname": ""}],
        "frameworks": [7, {"name": "no id"}, {"id": "f", "name": "fw", "pid": null, "tasks": [
            {"id": "a", "name": "good", "slave_id": "c-S0", "state": "TASK_RUNNING",
             "discovery": null, "resources": {"ports": [1, 2]}, "statuses": null, "labels": {}},
            {"id": "b", "name": "bad", "slave_id": "c-S0", "state": 5},
            {"id": "c", "name": "homeless", "slave_id": "c-S2", "state": "TASK_RUNNING"},
            {"id": "d", "name": "nowhere", "slave_id": "c-S3", "state": "TASK_RUNNING",
             "statuses": [{"state": "TASK_RUNNING", "container_status": {"network_infos":
                [{"ip_addresses": [{"ip_address": "9.0.0.1"}]}]}}]},
            {"id": "e", "name": "listed", "slave_id": "c-S0", "state": "TASK_RUNNING",
             "discovery": {"name": "ports", "ports": [{"number": 80}]}},
            {"id": "g", "name": "x", "slave_id": "c-S0", "state": "TASK_RUNNING",
             "discovery": {"name": "numbers", "ports": {"ports": [{"number": "80"}, {"number": 70000}, {"number": -1}]}}},
            null, "task"]}]}"#;
    let mut follower = StateFollower::new(Options::default());
    let view = follower.apply_state(state.as_bytes(), NOW).expect("a state");
    assert_eq!(follower.rejected(), 3 + 2 + 3);
    let found = records(&view, &mesos_dns());
    let of_tasks: Vec<String> =
        found.into_iter().filter(|line| line.contains(".fw") && !line.contains("-s")).collect();
    check(
        &of_tasks,
        "good.fw A 10.0.0.2
         good.fw.slave A 10.0.0.2
         homeless.fw A 10.0.0.4
         homeless.fw.slave A 10.0.0.4
         nowhere.fw A 9.0.0.1
         numbers.fw A 10.0.0.2
         numbers.fw.slave A 10.0.0.2
         ports.fw A 10.0.0.2
         ports.fw.slave A 10.0.0.2",
    );
}

#[test]
fn host_names_are_resolved_by_others() {
    let state = r#"{"leader": "master@boss:5050",
        "slaves": [{"id": "c-S0", "pid": "s@node1:5051", "hostname": "node1"}],
        "frameworks": [{"id": "f", "name": "fw", "hostname": "sched", "tasks": [
            {"id": "a", "name": "web", "slave_id": "c-S0", "state": "TASK_RUNNING"}]}]}"#;
    let masters = vec!["boss:5050".to_owned()];
    let mut follower = StateFollower::new(Options { masters, ..Options::default() });
    let view = follower.apply_state(state.as_bytes(), NOW).expect("a state");
    assert_eq!(records(&view, &mesos_dns()), [""; 0]);
    let wanted: Vec<&str> = follower.unresolved_hosts().iter().map(String::as_str).collect();
    assert_eq!(wanted, ["boss", "node1", "sched"]);
    follower.set_host("boss", &["10.0.0.1".parse().expect("address")]);
    follower.set_host("node1", &["10.0.0.2".parse().expect("address"), "fd00::2".parse().expect("address")]);
    let view = follower.set_host("sched", &["10.0.0.3".parse().expect("address")]);
    assert!(follower.unresolved_hosts().is_empty());
    check(
        &records(&view, &mesos_dns()).into_iter().filter(|line| !line.contains("-")).collect::<Vec<_>>(),
        "_leader._tcp SRV leader:5050
         _leader._udp SRV leader:5050
         _slave._tcp SRV slave:5051
         fw A 10.0.0.3
         leader A 10.0.0.1
         master A 10.0.0.1
         master0 A 10.0.0.1
         slave A 10.0.0.2
         slave AAAA fd00::2
         web.fw A 10.0.0.2
         web.fw AAAA fd00::2
         web.fw.slave A 10.0.0.2
         web.fw.slave AAAA fd00::2",
    );
}

#[test]
fn listed_frameworks_have_their_tasks_with_each_record_once() {
    let task =
        |id: &str| format!(r#"{{"id": "{id}", "name": "Web", "slave_id": "c-S0", "state": "TASK_RUNNING"}}"#);
    let tasks = [task("a"), task("b"), task("c").replace("RUNNING", "STAGING")].join(",");
    let view = view(&with_tasks("My Fw", &tasks), &[]);
    let zone = zone_of(&view, &mesos_dns());
    let listed: Vec<_> = zone.frameworks(&view).collect();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].name, "My Fw");
    let shown: Vec<String> = listed[0]
        .tasks
        .iter()
        .map(|task| {
            let records = task.records.iter().map(|record| format!("{} {}", record.owner, record.data));
            format!("{} {}: {}", task.name, task.id, records.collect::<Vec<_>>().join(", "))
        })
        .collect();
    assert_eq!(
        shown,
        [
            "Web a: web.myfw.mesos. A 10.0.0.2, web-o556e-s0.myfw.mesos. A 10.0.0.2, \
             web.myfw.slave.mesos. A 10.0.0.2, web-o556e-s0.myfw.slave.mesos. A 10.0.0.2",
            "Web b: web-78mt6-s0.myfw.mesos. A 10.0.0.2, web-78mt6-s0.myfw.slave.mesos. A 10.0.0.2",
        ]
    );
}
