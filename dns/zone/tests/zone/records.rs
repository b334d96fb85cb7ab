//! Which records a view makes: view in, zone file out.

use mesonet_dns_zone::NameError;
use mesonet_model::{ClusterView, TaskState};

use crate::cluster::{
    addresses, agent, discovery, dump, following, framework, host_ports, master, running, service, task, view,
};

#[track_caller]
fn check(view: &ClusterView, expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    assert_eq!(dump(&following(view)), expected.join("\n"));
}

/// A view with one agent, whose own names are left out of the expectations by [`check_tasks`].
fn one_agent() -> ClusterView {
    let mut view = view();
    agent(&mut view, "c-S0", "10.0.0.1", 0);
    view
}

/// Compares the records without `slave.mesos`.
#[track_caller]
fn check_tasks(view: &ClusterView, expected: &str) {
    let mut expected: Vec<&str> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    expected.push("slave.mesos. 5 IN A 10.0.0.1");
    expected.sort();
    check(view, &expected.join("\n"));
}

#[test]
fn masters_and_agents_are_named() {
    let mut view = view();
    master(&mut view, "m1", "0.0.0.8:9", false);
    master(&mut view, "m2", "0.0.0.6:7", true);
    agent(&mut view, "c-S0", "10.0.0.1", 5051);
    agent(&mut view, "c-S1", "fd00::1", 5051);
    check(
        &view,
        "_leader._tcp.mesos. 5 IN SRV 0 1 7 leader.mesos.
         _leader._udp.mesos. 5 IN SRV 0 1 7 leader.mesos.
         _slave._tcp.mesos. 5 IN SRV 0 1 5051 slave.mesos.
         leader.dcos.thisdcos.directory. 5 IN A 0.0.0.6
         leader.mesos. 5 IN A 0.0.0.6
         master.dcos.thisdcos.directory. 5 IN A 0.0.0.6
         master.dcos.thisdcos.directory. 5 IN A 0.0.0.8
         master.mesos. 5 IN A 0.0.0.6
         master.mesos. 5 IN A 0.0.0.8
         master0.mesos. 5 IN A 0.0.0.8
         master1.mesos. 5 IN A 0.0.0.6
         slave.mesos. 5 IN A 10.0.0.1
         slave.mesos. 5 IN AAAA fd00::1",
    );
}

#[test]
fn frameworks_are_named_by_their_address_and_an_inactive_twin_is_not() {
    let mut view = view();
    framework(&mut view, "f1", "Chronos.Dev (@ 2)", Some("10.1.0.1:4400"));
    framework(&mut view, "f2", "chronos.dev2", Some("10.1.0.2:4401"));
    let mut inactive =
        view.frameworks.values().find(|each| each.id.as_str() == "f2").expect("f2").as_ref().clone();
    inactive.active = false;
    view.frameworks.insert(inactive.id.clone(), inactive.into());
    check(
        &view,
        "_framework._tcp.chronos.dev2.mesos. 5 IN SRV 0 1 4400 chronos.dev2.mesos.
         chronos.dev2.mesos. 5 IN A 10.1.0.1",
    );
}

#[test]
fn tasks_without_discovery_information_have_their_clean_name() {
    let mut view = one_agent();
    let mut web = running("test", "Web.Server_1", "c-S0");
    web.resources = host_ports(&[31000, 31001]);
    task(&mut view, web);
    check_tasks(
        &view,
        "_web-server-1._tcp.marathon.mesos. 5 IN SRV 0 1 31000 web-server-1-iffe9-s0.marathon.slave.mesos.
         _web-server-1._tcp.marathon.mesos. 5 IN SRV 0 1 31001 web-server-1-iffe9-s0.marathon.slave.mesos.
         _web-server-1._tcp.marathon.slave.mesos. 5 IN SRV 0 1 31000 web-server-1-iffe9-s0.marathon.slave.mesos.
         _web-server-1._tcp.marathon.slave.mesos. 5 IN SRV 0 1 31001 web-server-1-iffe9-s0.marathon.slave.mesos.
         _web-server-1._udp.marathon.mesos. 5 IN SRV 0 1 31000 web-server-1-iffe9-s0.marathon.slave.mesos.
         _web-server-1._udp.marathon.mesos. 5 IN SRV 0 1 31001 web-server-1-iffe9-s0.marathon.slave.mesos.
         _web-server-1._udp.marathon.slave.mesos. 5 IN SRV 0 1 31000 web-server-1-iffe9-s0.marathon.slave.mesos.
         _web-server-1._udp.marathon.slave.mesos. 5 IN SRV 0 1 31001 web-server-1-iffe9-s0.marathon.slave.mesos.
         web-server-1-iffe9-s0.marathon.mesos. 5 IN A 10.0.0.1
         web-server-1-iffe9-s0.marathon.slave.mesos. 5 IN A 10.0.0.1
         web-server-1.marathon.agentip.dcos.thisdcos.directory. 5 IN A 10.0.0.1
         web-server-1.marathon.autoip.dcos.thisdcos.directory. 5 IN A 10.0.0.1
         web-server-1.marathon.containerip.dcos.thisdcos.directory. 5 IN A 10.0.0.1
         web-server-1.marathon.mesos. 5 IN A 10.0.0.1
         web-server-1.marathon.slave.mesos. 5 IN A 10.0.0.1",
    );
}

#[test]
fn discovery_names_are_served_as_given_and_as_one_label() {
    let mut view = one_agent();
    let mut nginx = running("test", "ignored", "c-S0");
    nginx.discovery = discovery("nginx.web", &["31000/tcp/http", "31001"]);
    nginx.resources = host_ports(&[31000]);
    nginx.addresses = addresses(&["9.0.1.2", "fd01::2"]);
    task(&mut view, nginx);
    check_tasks(
        &view,
        "_http._nginx-web._tcp.marathon.mesos. 5 IN SRV 0 1 31000 nginx-web-iffe9-s0.marathon.mesos.
         _http._nginx.web._tcp.marathon.mesos. 5 IN SRV 0 1 31000 nginx.web-iffe9-s0.marathon.mesos.
         _nginx-web._tcp.marathon.mesos. 5 IN SRV 0 1 31000 nginx-web-iffe9-s0.marathon.mesos.
         _nginx-web._tcp.marathon.mesos. 5 IN SRV 0 1 31001 nginx-web-iffe9-s0.marathon.mesos.
         _nginx-web._tcp.marathon.slave.mesos. 5 IN SRV 0 1 31000 nginx-web-iffe9-s0.marathon.slave.mesos.
         _nginx-web._udp.marathon.mesos. 5 IN SRV 0 1 31001 nginx-web-iffe9-s0.marathon.mesos.
         _nginx-web._udp.marathon.slave.mesos. 5 IN SRV 0 1 31000 nginx-web-iffe9-s0.marathon.slave.mesos.
         _nginx.web._tcp.marathon.mesos. 5 IN SRV 0 1 31000 nginx.web-iffe9-s0.marathon.mesos.
         _nginx.web._tcp.marathon.mesos. 5 IN SRV 0 1 31001 nginx.web-iffe9-s0.marathon.mesos.
         _nginx.web._tcp.marathon.slave.mesos. 5 IN SRV 0 1 31000 nginx.web-iffe9-s0.marathon.slave.mesos.
         _nginx.web._udp.marathon.mesos. 5 IN SRV 0 1 31001 nginx.web-iffe9-s0.marathon.mesos.
         _nginx.web._udp.marathon.slave.mesos. 5 IN SRV 0 1 31000 nginx.web-iffe9-s0.marathon.slave.mesos.
         nginx-web-iffe9-s0.marathon.mesos. 5 IN A 9.0.1.2
         nginx-web-iffe9-s0.marathon.mesos. 5 IN AAAA fd01::2
         nginx-web-iffe9-s0.marathon.slave.mesos. 5 IN A 10.0.0.1
         nginx-web.marathon.agentip.dcos.thisdcos.directory. 5 IN A 10.0.0.1
         nginx-web.marathon.autoip.dcos.thisdcos.directory. 5 IN A 9.0.1.2
         nginx-web.marathon.autoip.dcos.thisdcos.directory. 5 IN AAAA fd01::2
         nginx-web.marathon.containerip.dcos.thisdcos.directory. 5 IN A 9.0.1.2
         nginx-web.marathon.containerip.dcos.thisdcos.directory. 5 IN AAAA fd01::2
         nginx-web.marathon.mesos. 5 IN A 9.0.1.2
         nginx-web.marathon.mesos. 5 IN AAAA fd01::2
         nginx-web.marathon.slave.mesos. 5 IN A 10.0.0.1
         nginx.web-iffe9-s0.marathon.mesos. 5 IN A 9.0.1.2
         nginx.web-iffe9-s0.marathon.mesos. 5 IN AAAA fd01::2
         nginx.web-iffe9-s0.marathon.slave.mesos. 5 IN A 10.0.0.1
         nginx.web.marathon.mesos. 5 IN A 9.0.1.2
         nginx.web.marathon.mesos. 5 IN AAAA fd01::2
         nginx.web.marathon.slave.mesos. 5 IN A 10.0.0.1",
    );
}

#[test]
fn named_vips_have_names_with_or_without_endpoints() {
    let mut view = view();
    service(&mut view, "tcp/web@marathon:80", Some("127.11.0.1"), Some("fd01:c::1"));
    service(&mut view, "tcp/web@marathon:443", Some("127.11.0.1"), None);
    service(&mut view, "udp/api.hello-world@my.fw:53", Some("127.11.0.2"), None);
    service(&mut view, "tcp/unallocated@marathon:80", None, None);
    service(&mut view, "tcp/1.2.3.4:80", Some("1.2.3.4"), None);
    check(
        &view,
        "api.hello-world.my.fw.l4lb.thisdcos.directory. 5 IN A 127.11.0.2
         web.marathon.l4lb.thisdcos.directory. 5 IN A 127.11.0.1
         web.marathon.l4lb.thisdcos.directory. 5 IN AAAA fd01:c::1",
    );
}

/// The table of spec/dcos-networking.md §2.1.4: network of the task, and what its three names lead to.
#[test]
fn dcos_names_follow_the_network() {
    for (name, own, ports, agentip, autoip, containerip) in [
        ("none-on-host", &[][..], &["13977/tcp/http"][..], "10.0.0.1", &["10.0.0.1"][..], &["10.0.0.1"][..]),
        ("none-on-dcos", &["9.0.2.5"], &[], "10.0.0.1", &["9.0.2.5"], &["9.0.2.5"]),
        ("ucr-on-host", &[], &["10323/tcp/http"], "10.0.0.1", &["10.0.0.1"], &["10.0.0.1"]),
        (
            "ucr-on-bridge",
            &["172.31.254.3"],
            &["15263/tcp/http/host"],
            "10.0.0.1",
            &["10.0.0.1"],
            &["172.31.254.3"],
        ),
        (
            "docker-on-dcos",
            &["9.0.2.130"],
            &["8080/tcp/http/container"],
            "10.0.0.1",
            &["9.0.2.130"],
            &["9.0.2.130"],
        ),
        (
            "docker-on-ipv6",
            &["172.19.0.2", "fd01:b::2:8000:0:2"],
            &["8080/tcp/http/container"],
            "10.0.0.1",
            &["172.19.0.2", "fd01:b::2:8000:0:2"],
            &["172.19.0.2", "fd01:b::2:8000:0:2"],
        ),
        ("Group.none_at-all", &[], &[], "10.0.0.1", &["10.0.0.1"], &["10.0.0.1"]),
    ] {
        let mut view = one_agent();
        let mut each = running("t", "not-this", "c-S0");
        each.addresses = addresses(own);
        each.discovery = discovery(name, ports);
        task(&mut view, each);
        let label = name.to_lowercase().replace(['.', '_'], "-");
        let line = |kind: &str, address: &str| {
            let form = if address.contains(':') { "AAAA" } else { "A" };
            format!("{label}.marathon.{kind}.dcos.thisdcos.directory. 5 IN {form} {address}")
        };
        let mut expected = vec![line("agentip", agentip)];
        expected.extend(autoip.iter().map(|address| line("autoip", address)));
        expected.extend(containerip.iter().map(|address| line("containerip", address)));
        expected.sort();
        let records = dump(&following(&view));
        let found: Vec<&str> = records.lines().filter(|line| line.contains("dcos.thisdcos")).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn names_lead_to_the_best_tasks_that_are_left() {
    let addresses_of = |tasks: &[(&str, TaskState, Option<bool>, bool, bool)]| {
        let mut view = one_agent();
        for (at, (address, state, healthy, ready, draining)) in tasks.iter().enumerate() {
            let mut each = running(&format!("t{at}"), "web", "c-S0");
            each.addresses = addresses(&[address]);
            (each.state, each.healthy, each.ready, each.draining) = (*state, *healthy, *ready, *draining);
            task(&mut view, each);
        }
        let records = dump(&following(&view));
        let prefix = "web.marathon.mesos. 5 IN A ";
        records.lines().filter_map(|line| line.strip_prefix(prefix)).collect::<Vec<_>>().join(" ")
    };
    let ready = ("9.0.0.1", TaskState::Running, None, true, false);
    let healthy = ("9.0.0.2", TaskState::Running, Some(true), true, false);
    let unhealthy = ("9.0.0.3", TaskState::Running, Some(false), true, false);
    let unready = ("9.0.0.4", TaskState::Running, None, false, false);
    let draining = ("9.0.0.5", TaskState::Running, None, true, true);
    let killing = ("9.0.0.6", TaskState::Killing, None, true, false);
    let staging = ("9.0.0.7", TaskState::Staging, None, true, false);
    let lost = ("9.0.0.8", TaskState::Unreachable, None, true, false);
    let all = [ready, healthy, unhealthy, unready, draining, killing, staging, lost];
    for (from, expected) in
        [(0, "9.0.0.1 9.0.0.2"), (2, "9.0.0.3 9.0.0.4"), (4, "9.0.0.5 9.0.0.6"), (6, ""), (7, "")]
    {
        assert_eq!(addresses_of(&all[from..]), expected, "from {from} on");
    }
}

#[test]
fn names_lead_to_tasks_of_lost_agents_only_if_nothing_is_ready() {
    for (others, expected) in [
        (vec![("9.0.0.3", Some(true))], "9.0.0.3"),
        // What was well when it was last heard of is better than what is not.
        (vec![("9.0.0.3", Some(false))], "9.0.0.1 9.0.0.2"),
        (vec![], "9.0.0.1 9.0.0.2"),
    ] {
        let mut view = one_agent();
        let lost = [("9.0.0.1", TaskState::Running), ("9.0.0.2", TaskState::Unreachable)];
        for (address, state) in lost {
            let mut each = running(address, "web", "c-S0");
            (each.state, each.suspect, each.started_at) = (state, true, Some(each.staged_at));
            each.addresses = addresses(&[address]);
            task(&mut view, each);
        }
        for (address, healthy) in others {
            let mut each = running(address, "web", "c-S0");
            (each.healthy, each.addresses) = (healthy, addresses(&[address]));
            task(&mut view, each);
        }
        let records = dump(&following(&view));
        let prefix = "web.marathon.mesos. 5 IN A ";
        let found: Vec<&str> = records.lines().filter_map(|line| line.strip_prefix(prefix)).collect();
        assert_eq!(found.join(" "), expected);
    }
}

#[test]
fn tasks_wait_for_their_agent_and_framework() {
    let mut view = view();
    let mut orphan = running("t", "web", "c-S9");
    task(&mut view, orphan.clone());
    orphan.key.framework = mesonet_model::FrameworkId::new("unknown");
    orphan.agent = mesonet_model::AgentId::new("c-S0");
    agent(&mut view, "c-S0", "10.0.0.1", 0);
    task(&mut view, orphan);
    check_tasks(&view, "");
}

#[test]
fn names_that_would_not_be_valid_are_left_out_and_counted() {
    let long = "l".repeat(300);
    for (id, name, published, reason) in [
        ("spaces", "t", Some("my web server"), None),
        ("slash", "t", Some("/web"), None),
        ("unicode", "t", Some("日本.web"), None),
        ("dots", "t", Some("web..server"), Some(NameError::EmptyLabel)),
        ("long label", "t", Some(long.as_str()), Some(NameError::LabelTooLong)),
        ("long name", "t", Some("label.".repeat(60).trim_end_matches('.')), Some(NameError::NameTooLong)),
        ("nothing left", "日本", None, Some(NameError::EmptyLabel)),
        ("capitals", "t", Some("WEB_Server"), None),
        (long.as_str(), "t", None, None),
    ] {
        let mut view = one_agent();
        let mut odd = running(id, name, "c-S0");
        odd.discovery = published.and_then(|name| discovery(name, &["80/tcp/http"]));
        odd.resources = host_ports(&[31000]);
        task(&mut view, odd);
        let mut follower = following(&view);
        let reasons: Vec<NameError> = follower.skipped().keys().copied().collect();
        assert!(reason.is_none_or(|reason| reasons.contains(&reason)), "{id}: {reasons:?}");
        assert!(reason.is_some() || reasons.is_empty(), "{id}: {reasons:?}");
        for record in follower.zone().records() {
            let text = record.owner.to_string();
            let octets = record.owner.labels().map(|label| label.len() + 1).sum::<usize>() + 1;
            let is_short = record.owner.labels().all(|label| (1..=63).contains(&label.len()));
            assert!(octets <= 255 && is_short, "{text}");
        }
        let before = view.clone();
        view.tasks.clear();
        view.revision = view.revision.next();
        follower.apply(&view, &mesonet_model::Delta::between(&before, &view));
        assert!(follower.skipped().is_empty(), "{id}");
    }
}
