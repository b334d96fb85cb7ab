//! Which answer a question gets.

use mesonet_dns_zone::{Answer, Name, Question, QuestionType, Zone};
use mesonet_model::ClusterView;

use crate::cluster::{addresses, agent, at, discovery, follower, following, running, task, view};

/// Enough for every set in these tests.
const RECORDS_MAX: usize = 100;

const SOA: &str = "SOA ns1.mesos. root.ns1.mesos. 7 60 600 86400 5";

fn cluster_view() -> ClusterView {
    let mut view = view();
    agent(&mut view, "c-S0", "10.0.0.1", 0);
    for (id, address) in [("a", "9.0.0.1"), ("b", "9.0.0.2"), ("c", "9.0.0.3")] {
        let mut web = running(id, "-", "c-S0");
        web.discovery = discovery("nginx.web", &["80/tcp/http"]);
        web.addresses = addresses(&[address]);
        task(&mut view, web);
    }
    at(view, 7)
}

pub fn name(text: &str) -> Name {
    let labels: Vec<&[u8]> = text.split('.').map(str::as_bytes).collect();
    Name::from_labels(labels.into_iter()).expect(text)
}

pub fn ask(zone: &Zone, text: &str, kind: QuestionType, rotation: u16) -> Answer {
    zone.answer(&Question { name: name(text), kind }, rotation, RECORDS_MAX)
}

/// An answer as text: code, then each record behind the first letters of its section's name.
pub fn show(answer: &Answer) -> String {
    let mut lines = vec![format!("{:?}{}", answer.code, if answer.authoritative { " aa" } else { "" })];
    lines.extend(answer.reason.map(|reason| format!("ede {}", reason.code())));
    for (section, records) in [("an", &answer.answers), ("au", &answer.authority), ("ad", &answer.additional)]
    {
        let mut records: Vec<String> = records.iter().map(|record| format!("{section} {record}")).collect();
        records.sort();
        lines.append(&mut records);
    }
    lines.join("\n")
}

#[track_caller]
pub fn check(zone: &Zone, text: &str, kind: QuestionType, expected: &str) {
    let expected: Vec<&str> = expected.lines().map(str::trim).collect();
    assert_eq!(show(&ask(zone, text, kind, 0)), expected.join("\n"), "{text} {kind:?}");
}

#[test]
fn questions_get_what_the_zone_has() {
    let zone = following(&cluster_view()).zone();
    check(
        &zone,
        "NGINX.web.marathon.mesos",
        QuestionType::A,
        "NoError aa
         an nginx.web.marathon.mesos. 5 IN A 9.0.0.1
         an nginx.web.marathon.mesos. 5 IN A 9.0.0.2
         an nginx.web.marathon.mesos. 5 IN A 9.0.0.3",
    );
    check(&zone, "mesos", QuestionType::Soa, &format!("NoError aa\nan mesos. 5 IN {SOA}"));
    check(
        &zone,
        "dcos.thisdcos.directory",
        QuestionType::Ns,
        "NoError aa\nan dcos.thisdcos.directory. 5 IN NS ns1.mesos.",
    );
    check(&zone, "mesos", QuestionType::Any, "NoError aa\nan mesos. 5 IN HINFO \"RFC8482\" \"\"");
}

#[test]
fn ports_come_with_the_addresses_of_their_hosts() {
    let mut view = view();
    agent(&mut view, "c-S0", "10.0.0.1", 0);
    let mut web = running("test", "-", "c-S0");
    web.discovery = discovery("web", &["80/tcp/http"]);
    web.addresses = addresses(&["9.0.0.1", "fd00::9"]);
    task(&mut view, web);
    let zone = following(&view).zone();
    for origin in ["mesos", "mesos.thisdcos.directory"] {
        check(
            &zone,
            &format!("_http._web._tcp.marathon.{origin}"),
            QuestionType::Srv,
            &format!(
                "NoError aa
                 an _http._web._tcp.marathon.{origin}. 5 IN SRV 0 1 80 web-iffe9-s0.marathon.{origin}.
                 ad web-iffe9-s0.marathon.{origin}. 5 IN A 9.0.0.1
                 ad web-iffe9-s0.marathon.{origin}. 5 IN AAAA fd00::9"
            ),
        );
    }
}

#[test]
fn negative_answers_carry_the_apex_soa() {
    let zone = following(&cluster_view()).zone();
    let no_data = format!("NoError aa\nau mesos. 5 IN {SOA}");
    let no_name = format!("NameError aa\nau mesos. 5 IN {SOA}");
    for (text, kind, expected) in [
        ("nginx.web.marathon.mesos", QuestionType::Aaaa, &no_data),
        ("nginx.web.marathon.mesos", QuestionType::Srv, &no_data),
        ("nginx.web.marathon.mesos", QuestionType::Soa, &no_data),
        ("nginx.web.marathon.mesos", QuestionType::Ns, &no_data),
        ("nginx.web.marathon.mesos", QuestionType::Other, &no_data),
        ("mesos", QuestionType::A, &no_data),
        // Names with nothing of their own, but with names below them.
        ("web.marathon.mesos", QuestionType::A, &no_data),
        ("_tcp.marathon.mesos", QuestionType::Srv, &no_data),
        ("marathon.mesos", QuestionType::A, &no_data),
        ("no.marathon.mesos", QuestionType::A, &no_name),
        ("ginx.web.marathon.mesos", QuestionType::A, &no_name),
        ("_no._tcp.marathon.mesos", QuestionType::Srv, &no_name),
        ("no.mesos", QuestionType::Any, &no_name),
        ("no.mesos", QuestionType::Soa, &no_name),
    ] {
        check(&zone, text, kind, expected);
    }
    let elsewhere = format!("NameError aa\nau l4lb.thisdcos.directory. 5 IN {SOA}");
    check(&zone, "no.marathon.l4lb.thisdcos.directory", QuestionType::A, &elsewhere);
    let mirrored = format!("NameError aa\nau mesos.thisdcos.directory. 5 IN {SOA}");
    check(&zone, "no.marathon.mesos.thisdcos.directory", QuestionType::A, &mirrored);
}

#[test]
fn names_of_other_zones_are_refused() {
    let zone = following(&cluster_view()).zone();
    for text in ["example.com", "global", "dcos.directory", "notmesos", "directory", "1.0.0.10.in-addr.arpa"]
    {
        check(&zone, text, QuestionType::A, "Refused\nede 20");
    }
}

#[test]
fn before_the_first_view_nothing_is_said_not_to_exist() {
    let zone = follower().zone();
    for text in ["mesos", "nginx.web.marathon.mesos", "web.marathon.l4lb.thisdcos.directory"] {
        check(&zone, text, QuestionType::A, "ServerFailure\nede 14");
    }
    check(&zone, "example.com", QuestionType::A, "Refused\nede 20");
}

#[test]
fn the_serial_is_the_lower_half_of_the_revision() {
    for (revision, serial) in [(7, "7"), (u64::from(u32::MAX), "4294967295"), ((5 << 32) + 3, "3")] {
        let zone = following(&at(cluster_view(), revision)).zone();
        let soa = show(&ask(&zone, "mesos", QuestionType::Soa, 0));
        assert!(soa.contains(&format!("root.ns1.mesos. {serial} 60")), "{soa}");
    }
}

#[test]
fn asterisk_labels_do_not_count() {
    let zone = following(&cluster_view()).zone();
    for (text, count) in [
        ("nginx.*.web.*.marathon.mesos", 3),
        ("ngi.*nx.web.marathon.*.*.mesos", 3),
        ("nginx.w.*e.*b.marathon.mesos", 3),
        ("nginx.web.**.marathon.mesos", 0),
        ("*.marathon.mesos", 0),
        ("*.*.nginx.web.marathon.mesos", 0),
    ] {
        let asked = Name::from_labels(text.split('.').map(str::as_bytes)).expect(text);
        let answer = zone.answer(&Question { name: asked, kind: QuestionType::A }, 0, 10);
        assert_eq!(answer.answers.len(), count, "{text}");
    }
}

#[test]
fn each_record_comes_first_for_some_message() {
    let zone = following(&cluster_view()).zone();
    let order = |rotation: u16| -> Vec<String> {
        let answer = ask(&zone, "nginx.web.marathon.mesos", QuestionType::A, rotation);
        answer.answers.iter().map(|record| record.data.to_string()).collect()
    };
    assert_eq!(order(0), ["A 9.0.0.1", "A 9.0.0.2", "A 9.0.0.3"]);
    assert_eq!(order(1), ["A 9.0.0.2", "A 9.0.0.3", "A 9.0.0.1"]);
    assert_eq!(order(u16::MAX), order(u16::MAX % 3));
}

#[test]
fn long_sets_are_cut_and_say_so() {
    let zone = following(&cluster_view()).zone();
    let question = Question { name: name("nginx.web.marathon.mesos"), kind: QuestionType::A };
    for (records_max, count, truncated) in [(2, 2, true), (3, 3, false)] {
        let answer = zone.answer(&question, 0, records_max);
        assert_eq!((answer.answers.len(), answer.truncated), (count, truncated));
    }
}
