//! A zone that followed any sequence of views is the one made from the last view alone.

use mesonet_model::{ClusterView, Delta, FrameworkId, TaskId, TaskKey, TaskState};
use proptest::prelude::*;

use crate::cluster::{
    addresses, agent, discovery, dump, following, framework, host_ports, master, running, service, task,
};

/// A change of the view.
#[derive(Debug, Clone)]
enum Step {
    Task { id: u8, name: u8, agent: u8, framework: u8, state: u8, address: u8 },
    EndTask { id: u8, framework: u8 },
    Agent { id: u8, address: u8 },
    RemoveAgent(u8),
    Framework { id: u8, name: u8, address: bool },
    RemoveFramework(u8),
    Master { id: u8, leading: bool },
    RemoveMaster(u8),
    Service { name: u8, port: u8, address: Option<u8> },
    RemoveService { name: u8, port: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..6_u8, 0..5_u8, 0..3_u8, 0..3_u8, 0..5_u8, 0..4_u8).prop_map(
            |(id, name, agent, framework, state, address)| Step::Task { id, name, agent, framework, state, address }
        ),
        3 => (0..6_u8, 0..3_u8).prop_map(|(id, framework)| Step::EndTask { id, framework }),
        2 => (0..3_u8, 0..3_u8).prop_map(|(id, address)| Step::Agent { id, address }),
        1 => (0..3_u8).prop_map(Step::RemoveAgent),
        2 => (0..3_u8, 0..3_u8, any::<bool>())
            .prop_map(|(id, name, address)| Step::Framework { id, name, address }),
        1 => (0..3_u8).prop_map(Step::RemoveFramework),
        1 => (0..3_u8, any::<bool>()).prop_map(|(id, leading)| Step::Master { id, leading }),
        1 => (0..3_u8).prop_map(Step::RemoveMaster),
        2 => (0..3_u8, 1..3_u8, proptest::option::of(0..3_u8))
            .prop_map(|(name, port, address)| Step::Service { name, port, address }),
        1 => (0..3_u8, 1..3_u8).prop_map(|(name, port)| Step::RemoveService { name, port }),
    ]
}

fn make(view: &mut ClusterView, step: &Step) {
    match step {
        Step::Task { id, name, agent, framework, state, address } => {
            let mut each = running(&format!("t{id}"), "plain", &format!("c-S{agent}"));
            each.key.framework = FrameworkId::new(format!("f{framework}"));
            each.discovery = ["web", "nginx.web", "odd name", "a..b"]
                .get(usize::from(*name))
                .and_then(|name| discovery(name, &["80/tcp/http", "53/udp"]));
            each.addresses = addresses(
                ["", "9.0.0.1", "9.0.0.2", "fd00::1"]
                    .get(usize::from(*address)..)
                    .map_or(&[], |rest| if rest[0].is_empty() { &[] } else { &rest[..1] }),
            );
            each.resources = host_ports(&[31000]);
            (each.state, each.healthy, each.draining) = match state {
                0 => (TaskState::Running, None, false),
                1 => (TaskState::Running, Some(false), false),
                2 => (TaskState::Running, None, true),
                3 => (TaskState::Staging, None, false),
                _ => (TaskState::Killing, None, false),
            };
            task(view, each);
        }
        Step::EndTask { id, framework } => {
            let framework = FrameworkId::new(format!("f{framework}"));
            view.tasks.remove(&TaskKey::new(framework, TaskId::new(format!("t{id}"))));
        }
        Step::Agent { id, address } => agent(view, &format!("c-S{id}"), &format!("10.0.0.{address}"), 5051),
        Step::RemoveAgent(id) => {
            view.agents.remove(&mesonet_model::AgentId::new(format!("c-S{id}")));
        }
        Step::Framework { id, name, address } => {
            let name = ["marathon", "marathon", "my.fw"][usize::from(*name)];
            framework(view, &format!("f{id}"), name, address.then_some("10.0.1.1:80"));
        }
        Step::RemoveFramework(id) => {
            view.frameworks.remove(&FrameworkId::new(format!("f{id}")));
        }
        Step::Master { id, leading } => {
            master(view, &format!("m{id}"), &format!("10.0.2.{}:5050", id % 2), *leading);
        }
        Step::RemoveMaster(id) => {
            view.masters.remove(&mesonet_model::MasterId::new(format!("m{id}")));
        }
        Step::Service { name, port, address } => {
            let address = address.map(|address| format!("127.11.0.{address}"));
            service(view, &format!("tcp/s{name}@marathon:{port}"), address.as_deref(), None);
        }
        Step::RemoveService { name, port } => {
            let key = format!("tcp/s{name}@marathon:{port}");
            view.services.remove(&key.parse::<mesonet_model::ServiceKey>().expect("service key"));
        }
    }
    view.revision = view.revision.next();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn following_equals_starting_anew(
        batches in proptest::collection::vec((proptest::collection::vec(step(), 1..8), any::<bool>()), 1..12),
    ) {
        let mut view = crate::cluster::view();
        let mut applied = view.clone();
        let mut follower = following(&view);
        for (steps, missed) in batches {
            let before = view.clone();
            for step in &steps {
                make(&mut view, step);
            }
            if missed {
                // A view that is never applied; the next delta does not start from the one applied last.
                continue;
            }
            let earlier = follower.zone();
            let changed = follower.apply(&view, &Delta::between(&before, &view));
            let later = follower.zone();
            for name in earlier.names().chain(later.names()).filter(|name| changed.binary_search(name).is_err()) {
                prop_assert!(earlier.values(name).1.eq(later.values(name).1), "{name} changed and is not named");
            }
            let anew = following(&view);
            prop_assert_eq!(dump(&follower), dump(&anew));
            prop_assert_eq!(follower.skipped(), anew.skipped());
            prop_assert_eq!(follower.zone().record_count(), follower.zone().records().count());
            applied = view.clone();
        }
        prop_assert_eq!(follower.zone().revision(), Some(applied.revision));
    }
}
