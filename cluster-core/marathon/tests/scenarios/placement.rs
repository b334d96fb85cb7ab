//! Which agents instances are placed on, and what the queue says while there is none.

use std::time::Duration;

use mesonet_marathon::{Command, NoMatchReason, QueueEntry};
use mesonet_model::{AgentId, Constraint, Scalar, TaskState};

use crate::cluster::{Cluster, agent, app, port};

/// What makes an app unplaceable.
type Change = fn(&mut mesonet_model::AppDefinition);

fn constraint(text: &str) -> Constraint {
    let mut words = text.split_whitespace();
    Constraint {
        field: words.next().expect("a field").to_owned(),
        operator: words.next().expect("an operator").parse().expect("operator"),
        value: words.next().map(str::to_owned),
    }
}

fn racks() -> Cluster {
    Cluster::with_agents([
        agent("a0", 4, &[("rack", "r1")]),
        agent("a1", 4, &[("rack", "r1")]),
        agent("a2", 4, &[("rack", "r2")]),
        agent("a3", 4, &[]),
    ])
}

/// How many instances of six each agent gets.
fn placed(constraints: &[&str]) -> [usize; 4] {
    let mut cluster = racks();
    let mut web = app("/web", 6);
    web.constraints = constraints.iter().map(|text| constraint(text)).collect();
    cluster.put(web).expect("accepted");
    let on = |host: &str| {
        cluster.launches.iter().filter(|(_, spec)| spec.command.environment["HOST"] == host).count()
    };
    [on("a0"), on("a1"), on("a2"), on("a3")]
}

#[test]
fn constraints_choose_agents() {
    let table: [(&[&str], [usize; 4]); 19] = [
        (&[], [2, 2, 1, 1]),
        (&["hostname UNIQUE"], [1, 1, 1, 1]),
        (&["@hostname UNIQUE"], [1, 1, 1, 1]),
        (&["rack UNIQUE"], [1, 0, 1, 0]),
        (&["hostname CLUSTER a2"], [0, 0, 6, 0]),
        (&["hostname CLUSTER"], [6, 0, 0, 0]),
        (&["rack CLUSTER r1"], [3, 3, 0, 0]),
        (&["hostname MAX_PER 1"], [1, 1, 1, 1]),
        (&["rack MAX_PER 2"], [1, 1, 2, 0]),
        (&["rack MAX_PER many"], [0, 0, 0, 0]),
        (&["hostname LIKE a[01]"], [3, 3, 0, 0]),
        (&["hostname LIKE a"], [0, 0, 0, 0]),
        (&["hostname LIKE ("], [0, 0, 0, 0]),
        (&["hostname UNLIKE a[01]"], [0, 0, 3, 3]),
        (&["hostname UNLIKE ("], [0, 0, 0, 0]),
        (&["rack UNLIKE r1"], [0, 0, 3, 3]),
        (&["rack IS r2"], [0, 0, 6, 0]),
        (&["rack IS r1", "hostname IS a1"], [0, 6, 0, 0]),
        (&["nowhere IS x"], [0, 0, 0, 0]),
    ];
    for (constraints, expected) in table {
        assert_eq!(placed(constraints), expected, "{constraints:?}");
    }
}

#[test]
fn group_by_spreads_evenly() {
    let [a0, a1, a2, a3] = placed(&["rack GROUP_BY 2"]);
    assert_eq!((a0 + a1, a2, a3), (3, 3, 0));
    let mut by_host = placed(&["hostname GROUP_BY"]);
    by_host.sort_unstable();
    assert_eq!(by_host, [1, 1, 2, 2]);
    let [a0, a1, a2, a3] = placed(&["rack GROUP_BY 3"]);
    assert_eq!((a0 + a1, a2, a3), (1, 1, 0), "a third rack is missing");
}

#[test]
fn unique_hosts_do_not_block_an_upgrade() {
    let mut cluster = racks();
    let mut web = app("/web", 4);
    web.constraints = vec![constraint("hostname UNIQUE")];
    cluster.put(web.clone()).expect("accepted");
    web.cmd = Some("sleep 2".into());
    cluster.put(web).expect("accepted");
    assert!(cluster.view().deployments.is_empty());
    assert_eq!(cluster.app("/web").counts().running, 4);
}

fn waiting(cluster: &Cluster) -> QueueEntry {
    QueueEntry::clone(&cluster.app("/web").queue.expect("it waits"))
}

#[test]
fn the_queue_says_why() {
    let all: [(Change, &[NoMatchReason]); 7] = [
        (|web| web.accepted_resource_roles = Some(vec!["db".into()]), &[NoMatchReason::UnfulfilledRole]),
        (|web| web.constraints = vec![constraint("rack IS r9")], &[NoMatchReason::UnfulfilledConstraint]),
        (|web| web.cpus = Scalar::from_units(1000), &[NoMatchReason::InsufficientCpus]),
        (|web| web.gpus = Scalar::from_units(1), &[NoMatchReason::InsufficientGpus]),
        (|web| web.disk = Scalar::from_units(100_000), &[NoMatchReason::InsufficientDisk]),
        (
            |web| {
                web.require_ports = true;
                web.port_definitions = vec![port(80, None)];
                web.mem = Scalar::from_units(100_000);
            },
            &[NoMatchReason::InsufficientMemory, NoMatchReason::InsufficientPorts],
        ),
        (
            |web| web.port_definitions = (0..1001).map(|index| port(index + 1, None)).collect(),
            &[NoMatchReason::InsufficientPorts],
        ),
    ];
    for (change, reasons) in all {
        let mut cluster = racks();
        let mut web = app("/web", 2);
        change(&mut web);
        cluster.put(web).expect("accepted");
        let queue = waiting(&cluster);
        assert_eq!((queue.count, queue.backoff_until), (2, None));
        assert_eq!((queue.processed_offers, queue.unused_offers), (4, 4));
        assert_eq!(queue.unused.len(), 4);
        assert!(
            queue.unused.iter().all(|unused| unused.reasons == reasons),
            "{reasons:?} {:?}",
            queue.unused
        );
        for summary in [&queue.last_offers, &queue.all_offers] {
            assert_eq!(summary.len(), 12);
            let mut left = 4;
            for step in summary {
                let declined = if step.reason == reasons[0] { 4 } else { 0 };
                assert_eq!((step.declined, step.processed), (declined, left), "{:?}", step.reason);
                left -= declined;
            }
        }
    }
}

#[test]
fn an_app_that_cannot_be_placed_waits_without_hurting_others() {
    let mut cluster = Cluster::new();
    let mut web = app("/web", 1);
    web.cpus = Scalar::from_units(1000);
    cluster.put(web.clone()).expect("accepted");
    cluster.put(app("/other", 2)).expect("accepted");
    assert_eq!(cluster.app("/other").counts().running, 2, "at once, though the offers were refused before");
    cluster.pass(Duration::from_secs(60));
    let queue = waiting(&cluster);
    assert!((5..=20).contains(&queue.processed_offers), "{} offers in a minute", queue.processed_offers);
    web.cpus = Scalar::from_units(1);
    cluster.put_all(vec![web], true).expect("forced");
    assert_eq!(cluster.app("/web").counts().running, 1);
    assert!(cluster.is_suppressed);
}

#[test]
fn what_ends_makes_room_at_once() {
    let mut cluster = Cluster::with_agents([agent("a0", 1, &[])]);
    let mut web = app("/web", 1);
    web.cpus = Scalar::from_units(1);
    cluster.put(web.clone()).expect("accepted");
    web.id = crate::cluster::id("/next");
    cluster.put(web).expect("accepted");
    assert_eq!(cluster.app("/next").counts().running, 0);
    cluster.delete("/web", false).expect("accepted");
    assert_eq!(cluster.app("/next").counts().running, 1);
}

/// An app that waits because a rack that may have one instance has it.
fn one_per_rack(cluster: &mut Cluster, instances: u32) {
    let mut web = app("/web", instances);
    web.constraints = vec![constraint("rack MAX_PER 1")];
    cluster.put(web).expect("accepted");
}

#[test]
fn agents_that_an_instance_kept_out_are_looked_at_again_when_it_ends() {
    let rack = [("rack", "r1")];
    let mut cluster = Cluster::with_agents([agent("a0", 1, &rack), agent("a1", 1, &rack)]);
    one_per_rack(&mut cluster, 2);
    assert_eq!((cluster.tasks_on(0), cluster.tasks_on(1)), (1, 0));
    cluster.is_killing_at_once = false;
    let tasks = cluster.live("/web");
    let killed = Command::KillTasks { tasks: tasks.clone(), scale: false, force: true };
    cluster.command(killed).expect("accepted");
    cluster.pass(Duration::from_millis(100));
    cluster.agents.remove(&AgentId::new("c-S0"));
    cluster.report(&tasks[0], TaskState::Killed);
    cluster.pass(Duration::from_secs(1));
    assert_eq!((cluster.tasks_on(0), cluster.tasks_on(1)), (0, 1));
}

#[test]
fn instances_that_end_do_not_bring_back_all_offers_to_an_app_that_waits() {
    let mut cluster = racks();
    let mut big = app("/big", 1);
    big.cpus = Scalar::from_units(1000);
    cluster.put(big).expect("accepted");
    cluster.put(app("/other", 20)).expect("accepted");
    cluster.is_killing_at_once = false;
    cluster.scale("/other", 0).expect("accepted");
    let before = cluster.revivals;
    for task in cluster.live("/other") {
        cluster.report(&task, TaskState::Killed);
    }
    assert_eq!(cluster.revivals, before);
}

#[test]
fn lifted_constraints_bring_back_all_offers_once_a_second() {
    let hosts = (0..20).map(|index| agent(&format!("a{index}"), 1, &[("rack", &format!("r{index}"))]));
    let mut cluster = Cluster::with_agents(hosts);
    one_per_rack(&mut cluster, 40);
    cluster.is_killing_at_once = false;
    let tasks = cluster.live("/web");
    assert_eq!(tasks.len(), 20);
    let killed = Command::KillTasks { tasks: tasks.clone(), scale: false, force: true };
    cluster.command(killed).expect("accepted");
    let before = cluster.revivals;
    for task in &tasks {
        cluster.report(task, TaskState::Killed);
        cluster.pass(Duration::from_millis(100));
    }
    let revivals = cluster.revivals - before;
    assert!((1..=3).contains(&revivals), "{revivals} times in two seconds");
    assert_eq!(cluster.live("/web").len(), 20, "each has another one in its place");
}
