//! Nodes that change their keys all the time, on virtual time, and hear of each other late or never.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use mesonet_model::{AgentId, Timestamp};
use mesonet_overlay_plan::{Dated, KeySituation, KeyStep, NodeKeys, age_max_of};
use proptest::prelude::*;

const AGE_MAX: Duration = Duration::from_secs(60);

type Key = (usize, u32);

/// What a node says of its keys, and since which revision.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    key: Key,
    other: Option<Key>,
}

struct Node {
    keys: NodeKeys<Key>,
    made: u32,
    /// The newest revision that it has applied.
    applied: usize,
    is_live: bool,
    changes: u32,
}

/// A cluster whose every revision is kept, so that nodes can be behind.
struct Cluster {
    now: Timestamp,
    nodes: Vec<Node>,
    revisions: Vec<Vec<End>>,
    /// The revision of what each node has said last.
    changed: Vec<usize>,
}

fn end_of(keys: &NodeKeys<Key>) -> End {
    End { key: keys.primary().key, other: keys.other().map(|other| other.key) }
}

impl Cluster {
    fn new(count: usize) -> Self {
        let now = Timestamp::from_millis(0);
        let node = |number| Node {
            keys: NodeKeys::One(Dated { key: (number, 0), made: now }),
            made: 0,
            applied: 0,
            is_live: true,
            changes: 0,
        };
        let nodes: Vec<Node> = (0..count).map(node).collect();
        let first = nodes.iter().map(|node| end_of(&node.keys)).collect();
        Self { now, nodes, revisions: vec![first], changed: vec![0; count] }
    }

    /// A node does what is due, if anything is.
    fn act(&mut self, number: usize, is_last_in_use: bool) -> Option<KeyStep> {
        let revision = self.changed[number];
        let is_behind = |node: &Node| node.is_live && node.applied < revision;
        let is_acknowledged = !self.nodes.iter().any(is_behind);
        let situation = KeySituation { now: self.now, age_max: AGE_MAX, is_acknowledged, is_last_in_use };
        let now = self.now;
        let node = &mut self.nodes[number];
        let step = node.keys.step(&situation)?;
        let made = node.made + 1;
        let fresh = || Ok::<_, Infallible>(Dated { key: (number, made), made: now });
        let Ok(after) = node.keys.after(step, fresh);
        node.keys = after;
        match step {
            KeyStep::Announce => node.made = made,
            KeyStep::Switch => {}
            KeyStep::Drop => node.changes += 1,
        }
        let mut ends = self.revisions.last().cloned().unwrap_or_default();
        ends[number] = end_of(&node.keys);
        self.revisions.push(ends);
        self.changed[number] = self.revisions.len() - 1;
        Some(step)
    }

    fn hear(&mut self, number: usize) {
        self.nodes[number].applied = self.revisions.len() - 1;
    }

    /// Whatever a live node begins a handshake with, the other live node takes.
    fn check(&self) {
        for (from, a) in self.nodes.iter().enumerate().filter(|(_, node)| node.is_live) {
            for (to, b) in self.nodes.iter().enumerate().filter(|(to, node)| node.is_live && *to != from) {
                let own = a.keys.primary().key;
                let of_peer = self.revisions[a.applied][to].key;
                let known = &self.revisions[b.applied][from];
                assert!(known.key == own || known.other == Some(own), "node {to} does not know {own:?}");
                let taken = end_of(&b.keys);
                assert!(
                    taken.key == of_peer || taken.other == Some(of_peer),
                    "node {to} has dropped {of_peer:?}, which node {from} uses"
                );
            }
        }
    }

    /// Time passes, and the nodes act and hear of each other, but for those that do not.
    fn run(&mut self, seconds: u64, deaf: &[usize]) {
        for _ in 0..seconds {
            self.now = self.now.plus(Duration::from_secs(1));
            for number in 0..self.nodes.len() {
                if self.nodes[number].is_live {
                    self.act(number, false);
                }
                if !deaf.contains(&number) {
                    self.hear(number);
                }
                self.check();
            }
        }
    }

    fn changes(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.changes).collect()
    }
}

#[test]
fn keys_change_at_their_age_and_the_old_one_goes() {
    let mut cluster = Cluster::new(3);
    cluster.run(59, &[]);
    assert_eq!(cluster.changes(), [0, 0, 0]);
    cluster.run(10, &[]);
    assert_eq!(cluster.changes(), [1, 1, 1]);
    for (number, node) in cluster.nodes.iter().enumerate() {
        assert_eq!(end_of(&node.keys), End { key: (number, 1), other: None });
    }
}

#[test]
fn a_node_that_never_acknowledges_keeps_both_keys_in_force_until_it_dies() {
    let mut cluster = Cluster::new(3);
    cluster.run(3600, &[2]);
    assert_eq!(cluster.changes(), [0, 0, 0]);
    assert_eq!(end_of(&cluster.nodes[0].keys), End { key: (0, 0), other: Some((0, 1)) });
    cluster.nodes[2].is_live = false;
    // A step a second.
    cluster.run(2, &[2]);
    assert_eq!(cluster.changes()[..2], [1, 1]);
    assert_eq!(end_of(&cluster.nodes[0].keys), End { key: (0, 1), other: None });
}

#[test]
fn a_key_that_was_made_by_a_wrong_clock_does_not_stay_until_that_time() {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    let mut cluster = Cluster::new(2);
    let right = cluster.now;
    cluster.now = right.plus(YEAR);
    cluster.run(60, &[]);
    cluster.now = right;
    cluster.run(10, &[]);
    assert_eq!(cluster.changes(), [2, 2]);
    cluster.run(50, &[]);
    assert_eq!(cluster.changes(), [2, 2], "the age of that one counts from now on");
}

#[test]
fn a_key_in_use_is_not_dropped() {
    let mut cluster = Cluster::new(2);
    cluster.now = cluster.now.plus(AGE_MAX);
    let act = |cluster: &mut Cluster, is_used| {
        let step = cluster.act(0, is_used);
        cluster.hear(0);
        cluster.hear(1);
        step
    };
    assert_eq!(act(&mut cluster, true), Some(KeyStep::Announce));
    assert_eq!(act(&mut cluster, true), Some(KeyStep::Switch));
    assert_eq!(act(&mut cluster, true), None);
    assert_eq!(act(&mut cluster, false), Some(KeyStep::Drop));
}

#[test]
fn nodes_change_their_keys_at_moments_of_their_own() {
    let ages = (0..800).map(|number| age_max_of(&AgentId::new(format!("node-{number}")), AGE_MAX));
    let ages: Vec<Duration> = ages.collect();
    let mut counts = [0; 8];
    for age in &ages {
        assert!(*age <= AGE_MAX && *age > AGE_MAX - AGE_MAX / 8, "{age:?}");
        let place = (AGE_MAX - *age).as_micros() * 8 / (AGE_MAX / 8).as_micros();
        counts[place as usize] += 1;
    }
    assert!(counts.iter().all(|count| (50..=200).contains(count)), "{counts:?}");
    let distinct: BTreeSet<&Duration> = ages.iter().collect();
    assert!(distinct.len() > 780, "{}", distinct.len());
    assert_eq!(age_max_of(&AgentId::new("node-7"), AGE_MAX), ages[7], "it is the same each time");
    age_max_of(&AgentId::new("node-7"), Duration::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_node_is_ever_shut_out(
        steps in proptest::collection::vec((0..4_usize, 0..3_u8, 0..40_u64), 1..300),
    ) {
        let mut cluster = Cluster::new(4);
        let mut seen: BTreeMap<usize, u32> = BTreeMap::new();
        for (number, kind, seconds) in steps {
            match kind {
                0 => cluster.hear(number),
                _ => {
                    cluster.act(number, false);
                }
            }
            cluster.now = cluster.now.plus(Duration::from_secs(seconds));
            cluster.check();
            let made = cluster.nodes[number].made;
            prop_assert!(seen.insert(number, made).is_none_or(|before| before <= made));
        }
    }
}
