//! Zones beside that of mesos-dns: aliases, fixed and static names, names of addresses, lists and transfers.

use mesonet_dns_zone::{Config, ConfigError, Name, NameError, SoaConfig, Zone, ZoneFollower};
use mesonet_model::{ClusterView, Delta, TaskState};

use crate::answers::{ask, check, name, show};
use crate::cluster::{
    addresses, agent, at, discovery, following, framework, host_ports, master, running, service, task, view,
};
use mesonet_dns_zone::QuestionType::{A, Aaaa, Any, Cname, Ns, Ptr, Soa, Srv, Txt};

const SOA: &str = "SOA ns1.mesos. root.ns1.mesos. 7 60 600 86400 5";

fn config(records: &[&str]) -> Config {
    Config {
        static_records: records.iter().map(|record| record.parse().expect(record)).collect(),
        cluster_key: Some("yhpn3x".to_owned()),
        node_addresses: addresses(&["10.0.0.1", "fd00::1"]),
        node_public_addresses: addresses(&["192.0.2.1"]),
        ..Config::default()
    }
}

fn zone(view: &ClusterView, config: &Config) -> Zone {
    let mut follower = ZoneFollower::new(config, &[]).expect("settings");
    follower.apply(view, &Delta::between(&ClusterView::empty(view.cluster.clone()), view));
    follower.zone()
}

/// Two masters, an agent, a task with its own address and a service.
fn cluster() -> ClusterView {
    let mut view = view();
    master(&mut view, "m1", "10.0.1.1:5050", true);
    master(&mut view, "m2", "10.0.1.2:5050", false);
    agent(&mut view, "c-S0", "10.0.0.1", 0);
    let mut web = running("test", "web", "c-S0");
    web.discovery = discovery("web", &["80/tcp/http"]);
    web.addresses = addresses(&["9.0.0.1"]);
    task(&mut view, web);
    service(&mut view, "tcp/web@marathon:80", Some("11.0.0.1"), Some("fd01:c::1"));
    at(view, 7)
}

/// Every form of a name, and the SOA owner of the zone that it is in.
#[test]
fn zones_are_served_under_their_other_names() {
    let zone = zone(&cluster(), &config(&[]));
    for origin in [
        "l4lb.thisdcos.directory",
        "dclb.thisdcos.directory",
        "l4lb.thisdcos.global",
        "dclb.thisdcos.global",
        "l4lb.yhpn3x.dcos.directory",
        "dclb.yhpn3x.dcos.directory",
    ] {
        let owner = format!("web.marathon.{origin}");
        check(&zone, &owner, A, &format!("NoError aa\nan {owner}. 5 IN A 11.0.0.1"));
        check(&zone, &owner, Aaaa, &format!("NoError aa\nan {owner}. 5 IN AAAA fd01:c::1"));
        let none = format!("NameError aa\nau {origin}. 5 IN {SOA}");
        check(&zone, &format!("no.marathon.{origin}"), A, &none);
    }
    for (origin, of_mesos) in [
        ("mesos.thisdcos.directory", true),
        ("mesos.thisdcos.global", true),
        ("mesos.yhpn3x.dcos.directory", true),
        ("dcos.thisdcos.global", false),
        ("dcos.yhpn3x.dcos.directory", false),
    ] {
        if of_mesos {
            let owner = format!("_http._web._tcp.marathon.{origin}");
            let host = format!("web-iffe9-s0.marathon.{origin}.");
            let expected =
                format!("NoError aa\nan {owner}. 5 IN SRV 0 1 80 {host}\nad {host} 5 IN A 9.0.0.1");
            check(&zone, &owner, Srv, &expected);
        } else {
            let owner = format!("web.marathon.containerip.{origin}");
            check(&zone, &owner, A, &format!("NoError aa\nan {owner}. 5 IN A 9.0.0.1"));
        }
    }
    // Another cluster's key is for others to know.
    check(&zone, "web.marathon.l4lb.other.dcos.directory", A, "Refused\nede 20");
    // Whatever is below thisdcos.directory is answered here.
    let nothing = format!("NameError aa\nau thisdcos.directory. 5 IN {SOA}");
    check(&zone, "no.thisdcos.directory", A, &nothing);
}

#[test]
fn every_node_has_names_of_its_own() {
    let zone = zone(&cluster(), &config(&[]));
    for (owner, kind, expected) in [
        ("ready.spartan", A, "A 127.0.0.1"),
        ("ns.spartan", A, "A 198.51.100.1"),
        ("localhost", A, "A 127.0.0.1"),
        ("localhost", Aaaa, "AAAA ::1"),
        ("thisnode.thisdcos.directory", A, "A 10.0.0.1"),
        ("thisnode.thisdcos.directory", Aaaa, "AAAA fd00::1"),
        ("public.thisnode.thisdcos.directory", A, "A 192.0.2.1"),
        ("leader.dcos.thisdcos.directory", A, "A 10.0.1.1"),
        ("zk-1.zk", A, "A 10.0.1.1"),
        ("zk-2.zk", A, "A 10.0.1.2"),
        ("zk-3.zk", A, "A 10.0.1.1"),
        ("zk-4.zk", A, "A 10.0.1.2"),
        ("zk-5.zk", A, "A 10.0.1.1"),
    ] {
        check(&zone, owner, kind, &format!("NoError aa\nan {owner}. 5 IN {expected}"));
    }
    check(&zone, "zk-6.zk", A, &format!("NameError aa\nau zk. 5 IN {SOA}"));
    check(
        &zone,
        "master.dcos.thisdcos.directory",
        A,
        "NoError aa
         an master.dcos.thisdcos.directory. 5 IN A 10.0.1.1
         an master.dcos.thisdcos.directory. 5 IN A 10.0.1.2",
    );
}

#[test]
fn aliases_are_followed_within_the_zones() {
    let records = [
        "first.mesos CNAME second.mesos",
        "second.mesos CNAME web.marathon.mesos",
        "away.mesos CNAME host.example",
        "lost.mesos CNAME no.mesos",
        "round.mesos CNAME round.mesos",
        // A name that the cluster gives a meaning keeps it.
        "web.marathon.mesos CNAME away.mesos",
    ];
    let zone = zone(&cluster(), &config(&records));
    for suffix in ["thisdcos.directory", "thisdcos.global", "yhpn3x.dcos.directory"] {
        check(
            &zone,
            &format!("registry.component.{suffix}"),
            A,
            &format!(
                "NoError aa
                 an master.dcos.{suffix}. 5 IN A 10.0.1.1
                 an master.dcos.{suffix}. 5 IN A 10.0.1.2
                 an registry.component.{suffix}. 5 IN CNAME master.dcos.{suffix}."
            ),
        );
    }
    check(
        &zone,
        "First.mesos",
        A,
        "NoError aa
         an first.mesos. 5 IN CNAME second.mesos.
         an second.mesos. 5 IN CNAME web.marathon.mesos.
         an web.marathon.mesos. 5 IN A 9.0.0.1",
    );
    check(&zone, "first.mesos", Cname, "NoError aa\nan first.mesos. 5 IN CNAME second.mesos.");
    check(&zone, "first.mesos", Any, "NoError aa\nan first.mesos. 5 IN HINFO \"RFC8482\" \"\"");
    check(&zone, "away.mesos", A, "NoError aa\nan away.mesos. 5 IN CNAME host.example.");
    let lost = format!("NameError aa\nan lost.mesos. 5 IN CNAME no.mesos.\nau mesos. 5 IN {SOA}");
    check(&zone, "lost.mesos", A, &lost);
    assert!(show(&ask(&zone, "round.mesos", A, 0)).starts_with("NoError aa\nan round.mesos."));
}

#[test]
fn static_records_are_served_where_they_are() {
    let records = [
        "db.mesos 30 A 10.9.9.1",
        "db.mesos 20 A 10.9.9.2",
        "_db._tcp.mesos SRV 1 2 5432 db.mesos",
        "printer.office.example TXT \"second floor\" left",
        "a.printer.office.example AAAA fd00::7",
        "1.2.0.192.in-addr.arpa PTR db.mesos",
        "ready.spartan A 127.0.0.9",
    ];
    let zone = zone(&cluster(), &config(&records));
    check(
        &zone,
        "db.mesos",
        A,
        "NoError aa
         an db.mesos. 20 IN A 10.9.9.1
         an db.mesos. 20 IN A 10.9.9.2",
    );
    check(
        &zone,
        "_db._tcp.mesos",
        Srv,
        "NoError aa
         an _db._tcp.mesos. 5 IN SRV 1 2 5432 db.mesos.
         ad db.mesos. 20 IN A 10.9.9.1
         ad db.mesos. 20 IN A 10.9.9.2",
    );
    check(
        &zone,
        "printer.office.example",
        Txt,
        "NoError aa\nan printer.office.example. 5 IN TXT \"second floor\" \"left\"",
    );
    // Such a name is a zone of its own, and what is beside it is not.
    let none = format!("NameError aa\nau printer.office.example. 5 IN {SOA}");
    check(&zone, "b.printer.office.example", A, &none);
    check(&zone, "office.example", A, "Refused\nede 20");
    check(
        &zone,
        "a.printer.office.example",
        Aaaa,
        "NoError aa\nan a.printer.office.example. 5 IN AAAA fd00::7",
    );
    check(&zone, "1.2.0.192.in-addr.arpa", Ptr, "NoError aa\nan 1.2.0.192.in-addr.arpa. 5 IN PTR db.mesos.");
    check(&zone, "ready.spartan", A, "NoError aa\nan ready.spartan. 5 IN A 127.0.0.9");
}

#[test]
fn what_needs_no_view_is_answered_before_the_first_one() {
    let records = ["host.example A 10.9.9.1", "db.mesos A 10.9.9.2"];
    let zone = ZoneFollower::new(&config(&records), &[]).expect("settings").zone();
    for (owner, expected) in [("ready.spartan", "127.0.0.1"), ("host.example", "10.9.9.1")] {
        check(&zone, owner, A, &format!("NoError aa\nan {owner}. 5 IN A {expected}"));
    }
    for owner in ["db.mesos", "zk-1.zk", "no.thisdcos.directory", "web.marathon.l4lb.thisdcos.global"] {
        check(&zone, owner, A, "ServerFailure\nede 14");
    }
    // An alias into a zone that is not known yet has no answer yet.
    check(&zone, "registry.component.thisdcos.directory", A, "ServerFailure\nede 14");
    check(&zone, "1.0.0.9.in-addr.arpa", Ptr, "Refused\nede 20");
}

#[test]
fn addresses_lead_back_to_the_one_name_that_they_have() {
    let mut view = cluster();
    let mut twin = running("other", "twin", "c-S0");
    for (id, address) in [("t1", "172.31.254.2"), ("t2", "172.31.254.2"), ("t3", "10.0.0.1")] {
        twin.key.task = mesonet_model::TaskId::new(id);
        twin.addresses = addresses(&[address]);
        task(&mut view, twin.clone());
    }
    let view = at(view, 7);
    let served = zone(&view, &config(&[]));
    for (owner, expected) in [
        ("1.0.0.9.in-addr.arpa", "web-iffe9-s0.marathon.mesos."),
        ("1.0.0.11.in-addr.arpa", "web.marathon.l4lb.thisdcos.directory."),
        (
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.c.0.0.0.1.0.d.f.ip6.arpa",
            "web.marathon.l4lb.thisdcos.directory.",
        ),
        ("2.1.0.10.in-addr.arpa", "master1.mesos."),
    ] {
        check(&served, owner, Ptr, &format!("NoError aa\nan {owner}. 5 IN PTR {expected}"));
    }
    // Two tasks have this one, behind the bridges of two agents.
    let shared = "2.254.31.172.in-addr.arpa";
    check(&served, shared, Ptr, &format!("NoError aa\nau {shared}. 5 IN {SOA}"));
    // The host's address is shared by all that runs there, and other addresses are others' business.
    for owner in ["1.0.0.10.in-addr.arpa", "9.9.9.9.in-addr.arpa", "in-addr.arpa"] {
        check(&served, owner, Ptr, "Refused\nede 20");
    }
    let without = zone(&view, &Config { reverse_names: false, ..Config::default() });
    check(&without, "1.0.0.9.in-addr.arpa", Ptr, "Refused\nede 20");
}

#[test]
fn settings_say_what_the_zone_s_start_is() {
    let soa = SoaConfig {
        primary: Some("ns.example.".to_owned()),
        mailbox: Some("admin@example".to_owned()),
        refresh: 1,
        retry: 2,
        expire: 3,
        minimum: Some(4),
    };
    let zone = zone(
        &cluster(),
        &Config { soa, ttl: 9, srv_weight: 3, domain: "cluster.test".to_owned(), ..Config::default() },
    );
    check(
        &zone,
        "cluster.test",
        Soa,
        "NoError aa\nan cluster.test. 9 IN SOA ns.example. admin.example. 7 1 2 3 4",
    );
    check(&zone, "cluster.test", Ns, "NoError aa\nan cluster.test. 9 IN NS ns.example.");
    let ports = show(&ask(&zone, "_web._tcp.marathon.cluster.test", Srv, 0));
    assert!(ports.contains("9 IN SRV 0 3 80 web-iffe9-s0.marathon.cluster.test."), "{ports}");
    check(
        &zone,
        "web.marathon.mesos.thisdcos.directory",
        A,
        "NoError aa\nan web.marathon.mesos.thisdcos.directory. 9 IN A 9.0.0.1",
    );
}

#[test]
fn settings_that_make_no_zone_say_why() {
    let broken = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        ZoneFollower::new(&config, &[]).expect_err("settings that are wrong")
    };
    let empty = || NameError::EmptyLabel;
    assert_eq!(
        broken(&|config| config.domain = "a..b".to_owned()),
        ConfigError::Domain { domain: "a..b".to_owned(), source: empty() }
    );
    assert_eq!(
        broken(&|config| config.soa.primary = Some(".".to_owned())),
        ConfigError::Soa { name: ".".to_owned(), source: empty() }
    );
    assert_eq!(
        broken(&|config| config.cluster_key = Some("a.b".to_owned())),
        ConfigError::ClusterKey { key: "a.b".to_owned(), source: NameError::Character }
    );
    let alias = |config: &mut Config| {
        for record in ["a.mesos A 10.0.0.1", "a.mesos. CNAME b.mesos"] {
            config.static_records.push(record.parse().expect(record));
        }
    };
    assert_eq!(broken(&alias), ConfigError::AliasAndMore { name: "a.mesos.".to_owned() });
}

#[test]
fn zones_are_listed_as_files_are_written() {
    let mut view = view();
    agent(&mut view, "c-S0", "10.0.0.1", 5051);
    let mut web = running("test", "web", "c-S0");
    web.addresses = addresses(&["9.0.0.1"]);
    task(&mut view, web);
    let listed: Vec<String> =
        following(&at(view, 7)).zone().zone_file().map(|record| record.to_string()).collect();
    let head = |apex: &str| [format!("{apex}. 5 IN {SOA}"), format!("{apex}. 5 IN NS ns1.mesos.")];
    let mut expected: Vec<String> = Vec::new();
    expected.extend(head("zk"));
    expected.extend(head("mesos"));
    for line in [
        "slave.mesos. 5 IN A 10.0.0.1",
        "web.marathon.slave.mesos. 5 IN A 10.0.0.1",
        "web-iffe9-s0.marathon.slave.mesos. 5 IN A 10.0.0.1",
        "_slave._tcp.mesos. 5 IN SRV 0 1 5051 slave.mesos.",
        "web.marathon.mesos. 5 IN A 9.0.0.1",
        "web-iffe9-s0.marathon.mesos. 5 IN A 9.0.0.1",
    ] {
        expected.push(line.to_owned());
    }
    let mesos: Vec<&String> = listed.iter().filter(|line| expected.contains(line)).collect();
    let mut sorted: Vec<&String> = expected.iter().collect();
    sorted.sort();
    let mut found = mesos.clone();
    found.sort();
    assert_eq!(found, sorted);
    // Each zone begins with its SOA record, and what is behind it up to the next one belongs to it.
    let mut apex = "";
    let mut count = 0;
    for line in &listed {
        let owner = line.split(' ').next().expect("an owner");
        if line.contains(" SOA ") {
            apex = owner;
            count += 1;
        }
        assert!(owner.ends_with(apex) || owner.ends_with(".arpa."), "{line} is not in {apex}");
    }
    assert_eq!(count, 9);
    assert_eq!(listed.last().expect("lines"), "1.0.0.9.in-addr.arpa. 5 IN PTR web-iffe9-s0.marathon.mesos.");
}

#[test]
fn transfers_begin_and_end_with_the_zone_s_start() {
    let view = cluster();
    let zone = zone(&view, &config(&[]));
    let transfer = |apex: &str| -> Vec<String> {
        zone.transfer(&name(apex)).expect(apex).map(|record| record.to_string()).collect()
    };
    for apex in
        ["mesos", "mesos.thisdcos.directory", "l4lb.thisdcos.directory", "dclb.thisdcos.global", "spartan"]
    {
        let records = transfer(apex);
        let soa = format!("{apex}. 5 IN {SOA}");
        assert_eq!((&records[0], &records[records.len() - 1]), (&soa, &soa), "{apex}");
        assert_eq!(records.iter().filter(|record| **record == soa).count(), 2, "{apex}");
        assert!(records.iter().all(|record| {
            record.split(' ').next().is_some_and(|owner| owner.ends_with(&format!("{apex}.")))
        }));
    }
    let moved: Vec<String> =
        transfer("mesos").iter().map(|line| line.replace("mesos. ", "mesos.thisdcos.directory. ")).collect();
    assert_eq!(moved.len(), transfer("mesos.thisdcos.directory").len());
    assert!(transfer("mesos.thisdcos.global").contains(
        &"_web._tcp.marathon.mesos.thisdcos.global. 5 IN SRV 0 1 80 web-iffe9-s0.marathon.mesos.thisdcos.global.".to_owned()
    ));
    assert_eq!(
        transfer("l4lb.thisdcos.global")[2..4],
        [
            "web.marathon.l4lb.thisdcos.global. 5 IN A 11.0.0.1".to_owned(),
            "web.marathon.l4lb.thisdcos.global. 5 IN AAAA fd01:c::1".to_owned(),
        ]
    );
    assert!(zone.transfer(&name("marathon.mesos")).is_none());
    let waiting = ZoneFollower::new(&config(&[]), &[]).expect("settings").zone();
    assert!(waiting.transfer(&name("mesos")).is_none() && waiting.transfer(&name("spartan")).is_some());
    assert!(
        waiting
            .zone_file()
            .all(|record| !record.owner.is_within(&Name::root().below("mesos").expect("name")))
    );
}

#[test]
fn the_first_view_names_everything() {
    let view = cluster();
    let mut follower = ZoneFollower::new(&config(&["db.mesos A 10.9.9.1"]), &[]).expect("settings");
    let changed = follower.apply(&view, &Delta::between(&ClusterView::empty(view.cluster.clone()), &view));
    let zone = follower.zone();
    assert_eq!(changed, zone.names().cloned().collect::<Vec<_>>());
    assert!(changed.contains(&name("db.mesos")));
}

/// Whether each kind of task is named, if all running ones count and no others.
#[test]
fn health_and_drain_do_not_count_where_all_running_tasks_do() {
    let mut view = view();
    agent(&mut view, "c-S0", "10.0.0.1", 0);
    framework(&mut view, "f2", "sleeping", Some("10.1.0.1:80"));
    let mut sleeping = view.frameworks[&mesonet_model::FrameworkId::new("f2")].as_ref().clone();
    sleeping.active = false;
    view.frameworks.insert(sleeping.id.clone(), sleeping.clone().into());
    sleeping.id = mesonet_model::FrameworkId::new("f3");
    (sleeping.active, sleeping.address) = (true, Some(([10, 1, 0, 2], 80).into()));
    view.frameworks.insert(sleeping.id.clone(), sleeping.into());
    for (id, state, healthy, draining) in [
        ("1", TaskState::Running, None, false),
        ("2", TaskState::Running, Some(false), false),
        ("3", TaskState::Running, None, true),
        ("4", TaskState::Killing, None, false),
        ("5", TaskState::Unreachable, None, false),
    ] {
        let mut each = running(id, "web", "c-S0");
        (each.state, each.healthy, each.draining) = (state, healthy, draining);
        (each.addresses, each.started_at) = (addresses(&[&format!("9.0.0.{id}")]), Some(each.staged_at));
        each.resources = host_ports(&[31000]);
        task(&mut view, each);
    }
    let config = Config { task_choice: mesonet_dns_zone::TaskChoice::Running, ..Config::default() };
    let zone = zone(&view, &config);
    let values =
        |owner: &str| -> Vec<String> { zone.values(&name(owner)).1.map(ToString::to_string).collect() };
    assert_eq!(values("web.marathon.mesos"), ["A 9.0.0.1", "A 9.0.0.2", "A 9.0.0.3"]);
    assert_eq!(
        values("web.marathon.containerip.dcos.thisdcos.directory"),
        ["A 9.0.0.1", "A 9.0.0.2", "A 9.0.0.3"]
    );
    assert_eq!(values("sleeping.mesos"), ["A 10.1.0.1", "A 10.1.0.2"]);
}
