use std::sync::Arc;

use mesonet_model::{
    AgentInfo, AgentState, Attribute, ClusterId, EndpointKey, FrameworkId, NODE_ATTRIBUTE, Resources, TaskId,
    TaskKey, ZONE_ATTRIBUTE,
};

use super::*;

/// A service whose endpoints are tasks named by one letter, on nodes of two zones.
struct Scene {
    view: ClusterView,
    service: Service,
    observed: Observed,
    now: Timestamp,
}

fn id(task: &str) -> EndpointId {
    let number = u16::from(task.as_bytes()[0]);
    let task = TaskKey::new(FrameworkId::new("f"), TaskId::new(task));
    EndpointId { task, address: ([10, 0, 0, 1], 31_000 + number).into() }
}

fn agent(name: &str, zone: &str) -> Agent {
    let attribute = |name: &str, value: &str| Attribute { name: name.to_owned(), value: value.to_owned() };
    Agent {
        id: AgentId::new(format!("agent-{name}")),
        info: AgentInfo {
            hostname: name.to_owned(),
            address: [10, 0, 0, 1].into(),
            port: 0,
            resources: Resources::default(),
            container_networks: false,
            attributes: vec![attribute(NODE_ATTRIBUTE, name), attribute(ZONE_ATTRIBUTE, zone)],
        },
        other_addresses: Vec::new(),
        state: AgentState::Active,
        draining: false,
        registered_at: Timestamp::default(),
    }
}

impl Scene {
    /// Endpoints as pairs of a task and its node.
    fn new(weighing: Weighing, endpoints: &[(&str, &str)]) -> Self {
        let mut view = ClusterView::empty(ClusterId::new("c"));
        for (name, zone) in [("n1", "east"), ("n2", "east"), ("n3", "west")] {
            let agent = agent(name, zone);
            view.agents.insert(agent.id.clone(), Arc::new(agent));
        }
        let key = "tcp/web@marathon:80".parse().expect("key");
        let service = Service { weighing, ..Service::new(key) };
        let mut scene =
            Self { view, service, observed: Observed::default(), now: Timestamp::from_millis(1_000_000) };
        for (task, node) in endpoints {
            let agent = AgentId::new(format!("agent-{node}"));
            scene.put(task, Endpoint::new(agent, EndpointState::Ready, 1));
        }
        scene
    }

    fn put(&mut self, task: &str, endpoint: Endpoint) {
        let EndpointId { task, address } = id(task);
        let key = EndpointKey { service: self.service.key.clone(), task, address };
        self.view.endpoints.insert(key, Arc::new(endpoint));
    }

    fn change(&mut self, task: &str, change: impl FnOnce(&mut Endpoint)) {
        let EndpointId { task: key, address } = id(task);
        let key = EndpointKey { service: self.service.key.clone(), task: key, address };
        let mut endpoint = self.view.endpoints[&key].as_ref().clone();
        change(&mut endpoint);
        self.put(task, endpoint);
    }

    fn fail_checks(&mut self, tasks: &str) {
        for task in tasks.chars() {
            self.change(&task.to_string(), |endpoint| {
                endpoint.weight = 0;
                endpoint.failing = true;
            });
        }
    }

    fn weigh(&mut self) -> Weighed {
        let vantage = Vantage::of(&self.view, &AgentId::new("n1"));
        let weighed = weigh(&self.view, &self.service, &vantage, &self.observed, self.now);
        self.observed.reach = weighed.reach;
        weighed
    }

    /// Task and weight of each endpoint, such as `a100 b0`.
    fn weights(&mut self) -> String {
        let weighed = self.weigh();
        let texts = weighed.endpoints.iter().map(|(id, each)| format!("{}{}", id.task.task, each.weight));
        texts.collect::<Vec<_>>().join(" ")
    }

    fn standing(&mut self, task: &str) -> Standing {
        self.weigh().endpoints[&id(task)].standing
    }

    fn eject(&mut self, tasks: &str) {
        for (number, task) in tasks.chars().enumerate() {
            let until = self.now.plus(Duration::from_secs(5 + number as u64));
            self.observed.ejected.insert(id(&task.to_string()), until);
        }
    }
}

fn near(locality: Locality) -> Weighing {
    Weighing { locality, spill_connections: 10, ..Weighing::default() }
}

#[test]
fn shares_are_those_of_the_apps() {
    let mut scene = Scene::new(Weighing::default(), &[("a", "n1"), ("b", "n2"), ("c", "n3")]);
    scene.change("c", |endpoint| endpoint.share = 5);
    assert_eq!(scene.weights(), "a100 b100 c5");
    scene.change("c", |endpoint| endpoint.share = 0);
    assert_eq!(scene.weights(), "a100 b100 c0");
    assert_eq!(scene.standing("c"), Standing::NoShare);
}

#[test]
fn what_is_not_well_gets_nothing_until_too_few_are() {
    let mut scene =
        Scene::new(Weighing::default(), &[("a", "n1"), ("b", "n1"), ("c", "n1"), ("d", "n1"), ("e", "n1")]);
    scene.fail_checks("ab");
    assert_eq!(scene.weights(), "a0 b0 c100 d100 e100");
    assert_eq!(scene.standing("a"), Standing::NotReady);
    scene.fail_checks("c");
    assert_eq!(scene.weights(), "a100 b100 c100 d100 e100");
    assert_eq!(scene.standing("c"), Standing::Panic);
    scene.service.weighing.panic_percent = 0;
    assert_eq!(scene.weights(), "a0 b0 c0 d100 e100");
    scene.fail_checks("de");
    assert_eq!(scene.weights(), "a100 b100 c100 d100 e100");
}

#[test]
fn endpoints_that_have_never_been_ready_do_not_make_it_panic() {
    let tasks = [("a", "n1"), ("b", "n1"), ("c", "n1"), ("d", "n1")];
    let mut scene = Scene::new(Weighing::default(), &tasks);
    for task in ["b", "c", "d"] {
        scene.change(task, |endpoint| endpoint.weight = 0);
    }
    assert_eq!(scene.weights(), "a100 b0 c0 d0");
}

#[test]
fn endpoints_of_lost_nodes_say_so() {
    let mut scene = Scene::new(Weighing::default(), &[("a", "n1"), ("b", "n2")]);
    scene.change("b", |endpoint| endpoint.weight = 0);
    let lost = Agent { state: AgentState::Suspect, ..agent("n2", "east") };
    scene.view.agents.insert(lost.id.clone(), Arc::new(lost));
    assert_eq!(scene.weights(), "a100 b0");
    assert_eq!(scene.standing("b"), Standing::NodeLost);
}

#[test]
fn those_that_drain_or_are_dead_get_nothing() {
    let mut scene = Scene::new(Weighing::default(), &[("a", "n1"), ("b", "n1"), ("c", "n1")]);
    scene.change("b", |endpoint| endpoint.state = EndpointState::Draining);
    scene.change("c", |endpoint| endpoint.state = EndpointState::Down);
    assert_eq!(scene.weights(), "a100 b0 c0");
    assert_eq!((scene.standing("b"), scene.standing("c")), (Standing::Draining, Standing::Down));
}

#[test]
fn a_new_endpoint_gets_a_tenth_more_with_each_tenth_of_its_time() {
    let mut scene = Scene::new(Weighing::default(), &[("a", "n1"), ("b", "n1")]);
    let slow_start = SlowStart { since: scene.now, over: Duration::from_secs(20) };
    scene.change("b", |endpoint| endpoint.slow_start = Some(slow_start));
    let mut found = Vec::new();
    while let Some((at, reason)) = scene.weigh().deadline {
        found.push(scene.weigh().endpoints[&id("b")].weight);
        assert_eq!(reason, "slow start");
        assert_eq!(at.since(scene.now), Duration::from_secs(2));
        scene.now = at;
    }
    assert_eq!(found, [10, 20, 30, 40, 50, 60, 70, 80, 90]);
    assert_eq!(scene.weights(), "a100 b100");
}

#[test]
fn a_clock_that_disagrees_holds_nothing_back_for_long() {
    let mut scene = Scene::new(Weighing::default(), &[("a", "n1")]);
    for (ahead, expected) in [(0, "a10"), (19, "a10"), (21, "a100")] {
        let since = scene.now.plus(Duration::from_secs(ahead));
        let slow_start = SlowStart { since, over: Duration::from_secs(20) };
        scene.change("a", |endpoint| endpoint.slow_start = Some(slow_start));
        assert_eq!(scene.weights(), expected, "{ahead} s ahead");
    }
}

#[test]
fn so_many_are_ejected_as_may_be_and_never_the_last() {
    let tasks: Vec<(String, &str)> = ('a'..='j').map(|letter| (letter.to_string(), "n1")).collect();
    let tasks: Vec<(&str, &str)> = tasks.iter().map(|(task, node)| (task.as_str(), *node)).collect();
    for (count, percent, failed, expected) in [
        (10, 30, "abcdefghij", "abc"),
        (10, 100, "abcdefghij", "abcdefghi"),
        (10, 0, "ab", ""),
        (10, 30, "j", "j"),
        (2, 30, "ab", "a"),
        (1, 30, "a", ""),
    ] {
        let weighing = Weighing { ejected_max_percent: percent, ..Weighing::default() };
        let mut scene = Scene::new(weighing, &tasks[..count]);
        scene.eject(failed);
        let weighed = scene.weigh();
        let out = weighed.endpoints.iter().filter(|(_, each)| each.weight == 0);
        let out: String = out.map(|(id, _)| id.task.task.as_str()).collect();
        assert_eq!(out, expected, "{percent} % of {count}");
        assert_eq!(weighed.deadline.is_some(), !expected.is_empty());
    }
}

#[test]
fn the_nearest_get_all_that_they_have_room_for() {
    let tasks = [("a", "n1"), ("b", "n2"), ("c", "n3")];
    for (locality, expected) in
        [(Locality::Off, "a100 b100 c100"), (Locality::Zone, "a100 b100 c0"), (Locality::Node, "a100 b0 c0")]
    {
        assert_eq!(Scene::new(near(locality), &tasks).weights(), expected, "{locality:?}");
    }
    let mut scene = Scene::new(near(Locality::Node), &tasks);
    for (active, expected) in [
        ([9, 0], "a100 b0 c0"),
        ([10, 0], "a100 b100 c0"),
        ([8, 0], "a100 b100 c0"),
        ([7, 0], "a100 b0 c0"),
        ([15, 4], "a100 b100 c0"),
        ([15, 5], "a100 b100 c100"),
        ([10, 6], "a100 b100 c100"),
        ([9, 6], "a100 b100 c0"),
        ([0, 0], "a100 b0 c0"),
    ] {
        scene.observed.active = [(id("a"), active[0]), (id("b"), active[1])].into();
        assert_eq!(scene.weights(), expected, "{active:?} open connections");
    }
    scene.observed.active.clear();
    assert_eq!(scene.standing("c"), Standing::Farther);
}

#[test]
fn farther_ones_help_when_the_near_are_missing_ill_or_cold() {
    let tasks = [("b", "n2"), ("c", "n3")];
    assert_eq!(Scene::new(near(Locality::Node), &tasks).weights(), "b100 c0", "none on the node");

    let tasks = [("a", "n1"), ("b", "n1"), ("c", "n1"), ("d", "n3"), ("e", "n3"), ("g", "n3")];
    let mut scene = Scene::new(near(Locality::Node), &tasks);
    scene.fail_checks("a");
    assert_eq!(scene.weights(), "a0 b100 c100 d0 e0 g0", "two of three are enough");
    scene.fail_checks("ab");
    assert_eq!(scene.weights(), "a0 b0 c100 d100 e100 g100");

    let mut scene = Scene::new(near(Locality::Node), &[("a", "n1"), ("c", "n3")]);
    let slow_start = SlowStart { since: scene.now, over: Duration::from_secs(20) };
    scene.change("a", |endpoint| endpoint.slow_start = Some(slow_start));
    assert_eq!(scene.weights(), "a10 c100");
    scene.now = scene.now.plus(slow_start.over);
    assert_eq!(scene.weights(), "a100 c0");
}

#[test]
fn a_node_that_the_cluster_does_not_know_is_far_from_all() {
    let mut scene = Scene::new(near(Locality::Node), &[("a", "n1"), ("c", "n3")]);
    scene.view.agents.clear();
    assert_eq!(scene.weights(), "a100 c100");
}

mod never_empty {
    use proptest::prelude::*;

    use super::*;

    fn any_endpoint() -> impl Strategy<Value = (Endpoint, bool, u64)> {
        let state = prop_oneof![
            4 => Just(EndpointState::Ready),
            1 => Just(EndpointState::Draining),
            1 => Just(EndpointState::Down),
        ];
        let slow = prop::option::of((0..40_u64, 1..40_u64));
        (state, 0..2_u32, 0..200_u32, slow, any::<bool>(), 1..4_u8, any::<bool>(), 0..30_u64).prop_map(
            |(state, weight, share, slow, failing, node, ejected, active)| {
                let slow_start = slow.map(|(since, over)| SlowStart {
                    since: Timestamp::from_millis(1_000_000).plus(Duration::from_secs(since)),
                    over: Duration::from_secs(over),
                });
                let agent = AgentId::new(format!("agent-n{node}"));
                let endpoint = Endpoint {
                    share,
                    slow_start,
                    failing: failing && weight == 0,
                    ..Endpoint::new(agent, state, weight)
                };
                (endpoint, ejected, active)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whoever_has_something_well_gives_it_connections(
            endpoints in prop::collection::vec(any_endpoint(), 0..8),
            locality in prop::sample::select(&Locality::ALL[..]),
            ejected_max_percent in 0..=100_u8,
            panic_percent in 0..=100_u8,
        ) {
            let weighing = Weighing { locality, spill_connections: 10, ejected_max_percent, panic_percent };
            let mut scene = Scene::new(weighing, &[]);
            for (letter, (endpoint, ejected, active)) in ('a'..).zip(&endpoints) {
                let task = letter.to_string();
                scene.put(&task, endpoint.clone());
                scene.observed.active.insert(id(&task), *active);
                if *ejected {
                    scene.eject(&task);
                }
            }
            let is_well = |(endpoint, _, _): &(Endpoint, bool, u64)| {
                endpoint.state == EndpointState::Ready
                    && endpoint.share > 0
                    && (endpoint.weight > 0 || endpoint.failing)
            };
            let weighed = scene.weigh();
            let total: u32 = weighed.endpoints.values().map(|each| each.weight).sum();
            prop_assert_eq!(total > 0, endpoints.iter().any(is_well));
            prop_assert_eq!(weighed.endpoints.len(), endpoints.len());
            prop_assert!(weighed.deadline.is_none_or(|(at, _)| at > scene.now), "time must pass");
            prop_assert_eq!(&scene.weigh(), &weighed, "the same again");
        }
    }
}
