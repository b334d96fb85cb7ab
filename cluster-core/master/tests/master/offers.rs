//! Who is offered what, and when.

use std::time::Duration;

use mesonet_master::Input;
use mesonet_model::{
    FrameworkId, Offer, OfferId, PortRanges, Scalar, SchedulerCall, StatusReason, StatusSource, TaskId,
    TaskState,
};

use crate::cluster::{Cluster, agent_info, resources};

fn decline(cluster: &mut Cluster, offer: &Offer, refuse: Duration) {
    let framework = cluster.framework.clone();
    decline_as(cluster, &framework, offer, refuse);
}

fn decline_as(cluster: &mut Cluster, framework: &FrameworkId, offer: &Offer, refuse: Duration) {
    let call = SchedulerCall::Decline { offer: offer.id.clone(), refuse };
    cluster.handle(Input::Call { framework: framework.clone(), call });
}

fn offers(cluster: &mut Cluster) -> Vec<Offer> {
    let framework = cluster.framework.clone();
    cluster.take_offers(&framework)
}

#[test]
fn all_that_an_agent_has_is_offered_as_soon_as_it_registers() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    assert_eq!(agent.as_str(), "c-S0");
    let made = offers(&mut cluster);
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].agent, agent);
    assert_eq!(made[0].resources, agent_info(1, 4).resources);
}

#[test]
fn the_rest_of_an_accepted_offer_is_offered_after_the_refusal() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    let offer = offers(&mut cluster).remove(0);
    let spec = cluster.spec(&agent, "a", Vec::new());
    let refuse = Duration::from_secs(5);
    cluster.call(SchedulerCall::Accept { offer: offer.id, tasks: vec![spec], refuse });
    assert_eq!(offers(&mut cluster), []);
    cluster.pass(Duration::from_millis(4_999));
    assert_eq!(offers(&mut cluster), []);
    cluster.pass(Duration::from_millis(1));
    let made = offers(&mut cluster);
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].resources, resources(3, 4 * 1024 - 128, PortRanges::span(31000, 31099)));
}

#[test]
fn what_a_task_frees_is_offered_at_once_despite_a_filter() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    let rest = offers(&mut cluster).remove(0);
    decline(&mut cluster, &rest, Duration::from_secs(1000));
    assert_eq!(offers(&mut cluster), []);
    cluster.report("a", TaskState::Failed);
    let made = offers(&mut cluster);
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].resources, agent_info(1, 4).resources);
}

#[test]
fn resources_that_come_back_are_offered_to_those_who_refused_them_before() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    let offer = offers(&mut cluster).remove(0);
    let other = cluster.subscribe("other");
    let marathon = std::mem::replace(&mut cluster.framework, other);
    decline_as(&mut cluster, &marathon, &offer, Duration::from_secs(1000));
    let spec = cluster.spec(&agent, "a", Vec::new());
    cluster.launch(spec);
    let rest = offers(&mut cluster).remove(0);
    decline(&mut cluster, &rest, Duration::from_secs(1000));
    assert_eq!(cluster.take_offers(&marathon), []);
    cluster.report("a", TaskState::Finished);
    assert_eq!(cluster.take_offers(&marathon).len(), 1);
}

#[test]
fn declining_for_no_time_does_not_bring_the_offer_straight_back() {
    let mut cluster = Cluster::new();
    cluster.register(None, agent_info(1, 4), Vec::new());
    let offer = offers(&mut cluster).remove(0);
    decline(&mut cluster, &offer, Duration::ZERO);
    assert_eq!(offers(&mut cluster), []);
    cluster.pass(Duration::from_millis(100));
    assert_eq!(offers(&mut cluster).len(), 1);
}

#[test]
fn revive_lifts_filters_and_suppress_stops_offers() {
    let mut cluster = Cluster::new();
    cluster.register(None, agent_info(1, 4), Vec::new());
    let offer = offers(&mut cluster).remove(0);
    decline(&mut cluster, &offer, Duration::from_secs(1000));
    cluster.call(SchedulerCall::Revive);
    let offer = offers(&mut cluster).remove(0);
    cluster.call(SchedulerCall::Suppress);
    decline(&mut cluster, &offer, Duration::from_secs(5));
    cluster.register(None, agent_info(2, 4), Vec::new());
    cluster.pass(Duration::from_secs(100));
    assert_eq!(offers(&mut cluster), []);
    cluster.call(SchedulerCall::Revive);
    assert_eq!(offers(&mut cluster).len(), 2);
}

#[test]
fn the_framework_with_the_smaller_dominant_share_is_offered_first() {
    let mut cluster = Cluster::new();
    let first = cluster.register(None, agent_info(1, 4), Vec::new());
    let mut spec = cluster.spec(&first, "a", Vec::new());
    spec.resources = agent_info(1, 4).resources;
    cluster.launch(spec);
    let other = cluster.subscribe("other");
    cluster.register(None, agent_info(2, 1), Vec::new());
    assert_eq!(offers(&mut cluster), []);
    assert_eq!(cluster.take_offers(&other).len(), 1);
}

#[test]
fn what_one_framework_declines_goes_to_the_next() {
    let mut cluster = Cluster::new();
    let other = cluster.subscribe("other");
    cluster.register(None, agent_info(1, 4), Vec::new());
    let offer = offers(&mut cluster).remove(0);
    assert_eq!(cluster.take_offers(&other), []);
    decline(&mut cluster, &offer, Duration::from_secs(60));
    assert_eq!(cluster.take_offers(&other).len(), 1);
    assert_eq!(offers(&mut cluster), []);
}

#[test]
fn the_offers_of_a_lost_agent_are_rescinded_and_drop_their_tasks() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    let offer = offers(&mut cluster).remove(0);
    cluster.disconnect(&agent);
    let spec = cluster.spec(&agent, "a", Vec::new());
    let tasks = vec![spec];
    cluster.call(SchedulerCall::Accept { offer: offer.id, tasks, refuse: Duration::ZERO });
    let updates = cluster.updates();
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].state, TaskState::Dropped);
    assert_eq!(updates[0].reason, Some(StatusReason::ReasonInvalidOffers));
    assert_eq!(updates[0].source, StatusSource::SourceMaster);
    assert!(cluster.task("a").is_none());
    cluster.pass(Duration::from_secs(60));
    assert_eq!(offers(&mut cluster), [], "nothing is placed on a lost agent");
    cluster.register(Some(&agent), agent_info(1, 4), Vec::new());
    assert_eq!(offers(&mut cluster).len(), 1);
}

#[test]
fn tasks_that_do_not_fit_their_offer_are_errors_and_the_others_run() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    let offer = offers(&mut cluster).remove(0);
    let good = cluster.spec(&agent, "good", Vec::new());
    let mut large = cluster.spec(&agent, "large", Vec::new());
    large.resources.cpus = Scalar::from_thousandths(3_001);
    let mut negative = cluster.spec(&agent, "negative", Vec::new());
    negative.resources.mem = Scalar::from_units(-1);
    let mut port = cluster.spec(&agent, "port", Vec::new());
    port.resources.ports = PortRanges::span(80, 80);
    let mut elsewhere = cluster.spec(&agent, "elsewhere", Vec::new());
    elsewhere.agent = mesonet_model::AgentId::new("c-S9");
    let mut nameless = good.clone();
    nameless.key.task = TaskId::new("");
    let tasks = vec![good.clone(), large, negative, port, elsewhere, nameless, good];
    cluster.call(SchedulerCall::Accept { offer: offer.id, tasks, refuse: Duration::ZERO });
    let messages: Vec<String> = cluster
        .updates()
        .into_iter()
        .map(|status| {
            assert_eq!(status.state, TaskState::Error);
            status.message
        })
        .collect();
    assert_eq!(
        messages,
        [
            "task needs more cpus than the offer has left",
            "mem is negative",
            "task needs more ports than the offer has left",
            "task is for agent c-S9, but the offer is of another one",
            "task id is empty or longer than 255 bytes",
            "task id is in use",
        ]
    );
    assert_eq!(cluster.view().tasks.len(), 1);
}

#[test]
fn an_unknown_offer_leaves_a_running_task_alone() {
    let mut cluster = Cluster::new();
    let agent = cluster.register(None, agent_info(1, 4), Vec::new());
    cluster.run(&agent, "a", 31000, "/web:80");
    cluster.updates();
    let again = cluster.spec(&agent, "a", Vec::new());
    let offer = OfferId::new("c-O0");
    cluster.call(SchedulerCall::Accept { offer, tasks: vec![again], refuse: Duration::ZERO });
    assert_eq!(cluster.update_states(), [TaskState::Running]);
}

#[test]
fn a_framework_that_holds_many_offers_gets_the_others_in_batches_as_it_answers() {
    let mut cluster = Cluster::new();
    cluster.call(SchedulerCall::Suppress);
    for n in 0..1000_u16 {
        cluster.register(None, agent_info((n % 250) as u8, 4), Vec::new());
    }
    cluster.call(SchedulerCall::Revive);
    let mut agents = std::collections::BTreeSet::new();
    let mut held = offers(&mut cluster);
    let most = held.len();
    assert!(most < 1000);
    let mut batches = 1;
    while let Some(offer) = held.pop() {
        agents.insert(offer.agent.clone());
        decline(&mut cluster, &offer, Duration::from_secs(60));
        let more = offers(&mut cluster);
        batches += usize::from(!more.is_empty());
        held.extend(more);
        assert!(held.len() <= most);
    }
    assert_eq!(agents.len(), 1000);
    assert!(batches < 10, "{batches} batches");
}

#[test]
fn a_framework_that_holds_some_offers_is_offered_a_new_agent_at_once() {
    let mut cluster = Cluster::new();
    for n in 0..200_u8 {
        cluster.register(None, agent_info(n, 4), Vec::new());
    }
    assert_eq!(offers(&mut cluster).len(), 200);
    cluster.register(None, agent_info(200, 4), Vec::new());
    assert_eq!(offers(&mut cluster).len(), 1);
}
