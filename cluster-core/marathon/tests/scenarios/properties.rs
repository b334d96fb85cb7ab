//! Whatever users do and whatever becomes of tasks.

use std::collections::BTreeSet;
use std::time::Duration;

use mesonet_marathon::{AppView, Command, Marathon, MarathonView};
use mesonet_model::{AppDefinition, TaskId, TaskState, UnreachableStrategy};
use proptest::prelude::*;

use crate::cluster::{Cluster, agent, app, config, id};

const PATHS: [&str; 3] = ["/a", "/b", "/g/c"];

/// One thing that happens; the numbers choose among what there is.
#[derive(Debug, Clone)]
enum Step {
    Put { app: usize, instances: u32, cmd: u8, minimum: u8, over: u8, force: bool },
    Scale { app: usize, instances: u32, force: bool },
    Delete { app: usize, force: bool },
    Restart { app: usize, force: bool },
    Kill { task: usize, count: usize, scale: bool },
    Cancel { deployment: usize, force: bool },
    Report { task: usize, state: TaskState },
    EndKilled,
    Drain { agents: BTreeSet<usize> },
    Pass { millis: u64 },
    TakeOver,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let app = 0..PATHS.len();
    let state = prop::sample::select(vec![
        TaskState::Running,
        TaskState::Running,
        TaskState::Running,
        TaskState::Failed,
        TaskState::Finished,
        TaskState::Killed,
        TaskState::Lost,
        TaskState::Unreachable,
    ]);
    let step = prop_oneof![
        3 => (app.clone(), 0..6_u32, 0..3_u8, 0..=4_u8, 0..=4_u8, any::<bool>()).prop_map(
            |(app, instances, cmd, minimum, over, force)| Step::Put { app, instances, cmd, minimum, over, force }
        ),
        2 => (app.clone(), 0..8_u32, any::<bool>())
            .prop_map(|(app, instances, force)| Step::Scale { app, instances, force }),
        1 => (app.clone(), any::<bool>()).prop_map(|(app, force)| Step::Delete { app, force }),
        1 => (app, any::<bool>()).prop_map(|(app, force)| Step::Restart { app, force }),
        1 => (any::<usize>(), 1..3_usize, any::<bool>())
            .prop_map(|(task, count, scale)| Step::Kill { task, count, scale }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(deployment, force)| Step::Cancel { deployment, force }),
        8 => (any::<usize>(), state).prop_map(|(task, state)| Step::Report { task, state }),
        2 => Just(Step::EndKilled),
        1 => prop::collection::btree_set(0..2_usize, 0..=2).prop_map(|agents| Step::Drain { agents }),
        2 => (0..15_000_u64).prop_map(|millis| Step::Pass { millis }),
        1 => Just(Step::TakeOver),
    ];
    prop::collection::vec(step, 1..40)
}

/// Plays one step; a command that is refused is no failure.
fn play(cluster: &mut Cluster, step: Step) {
    let pick = |cluster: &Cluster, index: usize| -> Option<TaskId> {
        let count = cluster.tasks.len();
        (count > 0).then(|| cluster.tasks.keys().nth(index % count).cloned()).flatten()
    };
    match step {
        Step::Put { app: index, instances, cmd, minimum, over, force } => {
            let mut definition = app(PATHS[index], instances);
            definition.cmd = Some(format!("sleep {cmd}"));
            definition.upgrade_strategy.minimum_health_capacity = f64::from(minimum) / 4.0;
            definition.upgrade_strategy.maximum_over_capacity = f64::from(over) / 4.0;
            if cmd == 2 {
                definition.unreachable_strategy = UnreachableStrategy::Enabled {
                    inactive_after: Duration::from_secs(3),
                    expunge_after: Duration::from_secs(9),
                };
            }
            let _refused = cluster.put_all(vec![definition], force);
        }
        Step::Scale { app, instances, force } => {
            let view = cluster.view();
            if let Some(app) = view.apps.get(&id(PATHS[app])) {
                let mut definition = AppDefinition::clone(&app.definition);
                definition.instances = instances;
                let _refused = cluster.put_all(vec![definition], force);
            }
        }
        Step::Delete { app, force } => {
            let _refused = cluster.delete(PATHS[app], force);
        }
        Step::Restart { app, force } => {
            let _refused = cluster.command(Command::Restart { app: id(PATHS[app]), force });
        }
        Step::Kill { task, count, scale } => {
            let tasks = (0..count).filter_map(|offset| pick(cluster, task.wrapping_add(offset))).collect();
            let _refused = cluster.command(Command::KillTasks { tasks, scale, force: true });
        }
        Step::Cancel { deployment, force } => {
            let view = cluster.view();
            let ids: Vec<_> = view.deployments.keys().cloned().collect();
            if !ids.is_empty() {
                let deployment = ids[deployment % ids.len()].clone();
                let _refused = cluster.command(Command::CancelDeployment { deployment, force });
            }
        }
        Step::Report { task, state } => {
            if let Some(task) = pick(cluster, task) {
                cluster.report(&task, state);
            }
        }
        Step::EndKilled => cluster.end_killed(),
        Step::Drain { agents } => cluster.drain(agents),
        Step::Pass { millis } => cluster.pass(Duration::from_millis(millis)),
        Step::TakeOver => cluster.restart(),
    }
}

/// A view without what is not stored: the framework's id and what offers said.
fn stored(mut view: MarathonView) -> MarathonView {
    view.framework = None;
    let apps: Vec<_> = view.apps.values().cloned().collect();
    for app in apps {
        let app = AppView { queue: None, ..AppView::clone(&app) };
        view.apps.insert(app.definition.id.clone(), app.into());
    }
    view
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_wanted_runs_in_the_end(steps in steps()) {
        let mut cluster = Cluster::with_agents([agent("a0", 2, &[]), agent("a1", 2, &[])]);
        cluster.is_running_at_once = false;
        cluster.is_killing_at_once = false;
        for step in steps {
            play(&mut cluster, step);
            let recovered = Marathon::recover(config(1), &cluster.stored()).expect("own records");
            prop_assert_eq!(stored(recovered.view()), stored(cluster.view()));
        }
        cluster.is_running_at_once = true;
        cluster.is_killing_at_once = true;
        cluster.drain([]);
        let waiting: Vec<TaskId> = cluster.tasks.keys().cloned().collect();
        for task in waiting {
            if cluster.tasks.contains_key(&task) {
                cluster.report(&task, TaskState::Running);
            }
        }
        cluster.end_killed();
        cluster.pass(Duration::from_secs(1200));
        let view = cluster.view();
        prop_assert!(view.deployments.is_empty(), "{:?}", view.deployments);
        prop_assert!(cluster.is_suppressed);
        let mut known = BTreeSet::new();
        for app in view.apps.values() {
            prop_assert_eq!(app.counts().running, app.definition.instances as usize);
            prop_assert!(app.queue.is_none() && app.deployments.is_empty());
            known.extend(app.instances.keys().cloned());
        }
        let running: BTreeSet<TaskId> = cluster.tasks.keys().cloned().collect();
        prop_assert_eq!(known, running);
    }

    #[test]
    fn upgrades_keep_within_their_bounds(
        (before, after) in (0..8_u32, 0..8_u32),
        (minimum, over) in (0.0..=1.0_f64, 0.0..=1.0_f64),
        order in prop::collection::vec(any::<usize>(), 200),
    ) {
        let mut cluster = Cluster::new();
        let mut web = app("/web", before);
        web.upgrade_strategy.minimum_health_capacity = minimum;
        web.upgrade_strategy.maximum_over_capacity = over;
        cluster.put(web.clone()).expect("accepted");
        let total = f64::from(after);
        let (least, most) = ((total * minimum).ceil() as usize, (total * (1.0 + over)).floor() as usize);
        // What ran before is within the bounds; only new ones have to keep them.
        let most = most + usize::from(least == most);
        cluster.bounds = Some((id("/web"), least.min(before as usize), most.max(before as usize)));
        cluster.is_running_at_once = false;
        cluster.is_killing_at_once = false;
        web.instances = after;
        web.cmd = Some("sleep 2".into());
        cluster.put(web).expect("accepted");
        cluster.settle_one_by_one(order);
        prop_assert!(cluster.view().deployments.is_empty(), "stuck: {:?}", cluster.view().deployments);
        prop_assert_eq!(cluster.app("/web").counts().running, after as usize);
    }

    #[test]
    fn agents_are_left_within_the_bounds(
        instances in 0..8_u32,
        (minimum, over) in (0.0..=1.0_f64, 0.0..=1.0_f64),
        restarts in any::<bool>(),
        takes_over in any::<bool>(),
        order in prop::collection::vec(any::<usize>(), 200),
    ) {
        let mut cluster = Cluster::with_agents(["a0", "a1", "a2"].map(|name| agent(name, 8, &[])));
        let mut web = app("/web", instances);
        web.upgrade_strategy.minimum_health_capacity = minimum;
        web.upgrade_strategy.maximum_over_capacity = over;
        cluster.put(web.clone()).expect("accepted");
        let total = f64::from(instances);
        let (least, most) = ((total * minimum).ceil() as usize, (total * (1.0 + over)).floor() as usize);
        cluster.bounds = Some((id("/web"), least, most + usize::from(least == most)));
        cluster.is_running_at_once = false;
        cluster.is_killing_at_once = false;
        cluster.drain([0, 1]);
        if takes_over {
            cluster.restart();
        }
        if restarts {
            web.cmd = Some("sleep 2".into());
            cluster.put(web).expect("accepted");
        }
        cluster.settle_one_by_one(order);
        prop_assert_eq!((cluster.tasks_on(0), cluster.tasks_on(1)), (0, 0), "tasks are left");
        prop_assert_eq!(cluster.app("/web").counts().running, instances as usize);
        prop_assert!(cluster.view().deployments.is_empty());
    }
}
