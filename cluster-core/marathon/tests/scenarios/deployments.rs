//! What users ask for, and the deployments that come of it.

use mesonet_marathon::{ActionKind, AppBase, AppPut, Command, Deployment, EventKind, Rejection, Reply};
use mesonet_model::{AppDefinition, DeploymentId, TaskState};

use crate::cluster::{Cluster, app, at, id, port};

/// The steps as `Action app, …`.
fn steps(deployment: &Deployment) -> Vec<String> {
    let text = |step: &mesonet_marathon::DeploymentStep| {
        let actions = step.actions.iter().map(|action| format!("{} {}", action.kind.as_str(), action.app));
        actions.collect::<Vec<_>>().join(", ")
    };
    deployment.steps.iter().map(text).collect()
}

/// The steps of the last deployment that began.
fn last_steps(cluster: &Cluster) -> Vec<String> {
    let plan = cluster.events.iter().rev().find_map(|event| match event {
        EventKind::DeploymentInfo { plan, .. } => Some(plan),
        _ => None,
    });
    steps(plan.expect("a deployment has begun"))
}

/// The events as short words.
fn words(cluster: &mut Cluster) -> Vec<&'static str> {
    let word = |event: EventKind| match event {
        EventKind::StatusUpdate { .. } => "status",
        EventKind::InstanceChanged { .. } => "instance",
        EventKind::UnknownInstanceTerminated { .. } => "unknown",
        EventKind::GroupChanged { .. } => "group",
        EventKind::DeploymentInfo { .. } => "info",
        EventKind::DeploymentStepSuccess { .. } => "step",
        EventKind::DeploymentSuccess { .. } => "success",
        EventKind::DeploymentFailed { .. } => "failed",
        EventKind::AppTerminated { .. } => "terminated",
        EventKind::HealthStatusChanged { .. }
        | EventKind::InstanceHealthChanged { .. }
        | EventKind::FailedHealthCheck { .. }
        | EventKind::UnhealthyInstanceKill { .. } => "health",
    };
    std::mem::take(&mut cluster.events).into_iter().map(word).collect()
}

fn changed(cluster: &Cluster, path: &str, change: impl FnOnce(&mut AppDefinition)) -> AppDefinition {
    let mut definition = AppDefinition::clone(&cluster.app(path).definition);
    change(&mut definition);
    definition
}

#[test]
fn a_new_app_is_started_then_scaled() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 3)).expect("accepted");
    let web = cluster.app("/web");
    assert_eq!(web.counts().running, 3);
    assert_eq!(web.definition.version, at(0));
    assert_eq!(web.definition.version_info.last_scaling_at, at(0));
    assert!(web.queue.is_none() && web.deployments.is_empty());
    assert!(cluster.view().deployments.is_empty());
    assert_eq!(last_steps(&cluster), ["StartApplication /web", "ScaleApplication /web"]);
    let events = words(&mut cluster);
    assert_eq!(events[..4], ["group", "info", "step", "info"]);
    assert_eq!(events[events.len() - 4..], ["status", "instance", "step", "success"]);
    assert!(cluster.is_suppressed, "nothing waits, so no offers are wanted");
}

#[test]
fn a_deployment_is_seen_until_it_is_done() {
    let mut cluster = Cluster::new();
    cluster.is_running_at_once = false;
    let deployment = cluster.put(app("/web", 1)).expect("accepted");
    let view = cluster.view();
    let seen = &view.deployments[&deployment];
    assert_eq!((seen.current, seen.steps.len()), (1, 2));
    assert_eq!(seen.affected_apps, [id("/web")]);
    assert!(seen.original.is_empty());
    assert_eq!(seen.target.len(), 1);
    assert_eq!(cluster.app("/web").deployments, [deployment]);
    let task = cluster.live("/web").remove(0);
    cluster.report(&task, TaskState::Running);
    assert!(cluster.view().deployments.is_empty());
    assert!(cluster.app("/web").deployments.is_empty());
}

#[test]
fn the_action_follows_from_what_changes() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 2)).expect("accepted");
    let before = cluster.live("/web");

    cluster.scale("/web", 3).expect("accepted");
    assert_eq!(last_steps(&cluster), ["ScaleApplication /web"]);
    let web = cluster.app("/web");
    assert_eq!(web.definition.version_info.last_config_change_at, at(0));
    assert_eq!(web.definition.version_info.last_scaling_at, web.definition.version);
    assert!(before.iter().all(|task| cluster.tasks.contains_key(task)), "scaling restarts nothing");

    let definition = changed(&cluster, "/web", |web| web.cmd = Some("sleep 2".into()));
    cluster.put(definition).expect("accepted");
    assert_eq!(last_steps(&cluster), ["RestartApplication /web"]);
    assert!(before.iter().all(|task| !cluster.tasks.contains_key(task)), "all are replaced");

    let old = cluster.live("/web");
    cluster.command(Command::Restart { app: id("/web"), force: false }).expect("accepted");
    assert_eq!(last_steps(&cluster), ["RestartApplication /web"]);
    assert!(old.iter().all(|task| !cluster.tasks.contains_key(task)));
    assert_eq!(cluster.live("/web").len(), 3);

    cluster.delete("/web", false).expect("accepted");
    assert_eq!(last_steps(&cluster), ["StopApplication /web"]);
    assert!(!cluster.has_app("/web") && cluster.tasks.is_empty() && cluster.records.is_empty());
    let events = words(&mut cluster);
    assert_eq!(events[events.len() - 3..], ["terminated", "step", "success"]);
}

#[test]
fn a_put_that_changes_nothing_is_done_at_once() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 2)).expect("accepted");
    words(&mut cluster);
    let version = cluster.app("/web").definition.version;
    let definition = AppDefinition::clone(&cluster.app("/web").definition);
    let deployment = cluster.put(definition).expect("accepted");
    assert!(!deployment.as_str().is_empty());
    assert_eq!(words(&mut cluster), ["group", "success"]);
    assert_eq!(cluster.app("/web").definition.version, version);
    assert_eq!(cluster.app("/web").versions.len(), 1);
}

#[test]
fn versions_are_unique_and_only_so_many_are_kept() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    for instances in 2..=6 {
        cluster.scale("/web", instances).expect("accepted");
    }
    let versions: Vec<_> = cluster.app("/web").versions.iter().map(|version| version.version).collect();
    assert_eq!(versions, [at(5), at(4), at(3), at(2)], "the clock stood still");
    let records = cluster.records.keys().filter(|(table, _)| *table == mesonet_model::Table::AppVersions);
    assert_eq!(records.count(), 4);
}

#[test]
fn bases_protect_concurrent_changes() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    let mut put = |definition, base| {
        cluster.command(Command::Put { apps: vec![AppPut { definition, base }], force: false })
    };
    assert_eq!(put(app("/web", 2), AppBase::Absent), Err(Rejection::AppExists(id("/web"))));
    assert_eq!(put(app("/web", 2), AppBase::Version(at(9))), Err(Rejection::Stale(id("/web"))));
    assert_eq!(put(app("/new", 2), AppBase::Version(at(9))), Err(Rejection::Stale(id("/new"))));
    assert!(put(app("/web", 2), AppBase::Version(at(0))).is_ok());
}

#[test]
fn a_running_deployment_locks_its_apps_unless_forced() {
    let mut cluster = Cluster::new();
    cluster.is_running_at_once = false;
    let first = cluster.put(app("/web", 1)).expect("accepted");
    let other = cluster.put(app("/other", 1)).expect("another app is not locked");
    let definition = changed(&cluster, "/web", |web| web.cmd = Some("sleep 2".into()));
    let locked = Err(Rejection::Locked(vec![first.clone()]));
    assert_eq!(cluster.put(definition.clone()), locked);
    assert_eq!(cluster.delete("/web", false), locked);
    assert_eq!(cluster.app("/web").versions.len(), 1, "a refused command changes nothing");
    words(&mut cluster);

    let second = cluster.put_all(vec![definition], true).expect("forced");
    let failed = cluster.events.iter().find_map(|event| match event {
        EventKind::DeploymentFailed { plan, .. } => Some(plan.id.clone()),
        _ => None,
    });
    assert_eq!(failed, Some(first));
    let running: Vec<DeploymentId> = cluster.view().deployments.keys().cloned().collect();
    assert_eq!(running.len(), 2);
    assert!(running.contains(&second) && running.contains(&other));
}

#[test]
fn what_is_depended_on_comes_first() {
    let mut cluster = Cluster::new();
    let with = |path: &str, dependencies: &[&str]| {
        let mut definition = app(path, 1);
        definition.dependencies = dependencies.iter().map(|path| id(path)).collect();
        definition
    };
    let apps =
        vec![with("/web", &["/api"]), with("/api", &["/db"]), with("/db/a", &[]), with("/db/b", &["/db/a"])];
    cluster.put_all(apps, false).expect("accepted");
    let expected = [
        "StartApplication /web, StartApplication /api, StartApplication /db/a, StartApplication /db/b",
        "ScaleApplication /db/a",
        "ScaleApplication /db/b",
        "ScaleApplication /api",
        "ScaleApplication /web",
    ];
    assert_eq!(last_steps(&cluster), expected);
    let launched: Vec<_> = cluster.launches.iter().map(|(_, spec)| spec.name.as_str()).collect();
    assert_eq!(launched, ["a.db", "b.db", "api", "web"]);

    let mut circle = AppDefinition::clone(&cluster.app("/db/a").definition);
    circle.dependencies.insert(id("/web"));
    assert!(matches!(cluster.put(circle), Err(Rejection::DependencyCycle(_))));
    assert!(matches!(cluster.put(with("/self", &["/self"])), Err(Rejection::DependencyCycle(_))));
    assert!(cluster.put(with("/lone", &["/nowhere"])).is_ok(), "a dependency need not exist yet");
}

#[test]
fn a_long_chain_of_dependencies_is_followed() {
    let mut cluster = Cluster::new();
    let link = |index: usize| {
        let mut definition = app(&format!("/link{index}"), 0);
        definition.port_definitions.clear();
        definition.dependencies =
            (index > 0).then(|| id(&format!("/link{}", index - 1))).into_iter().collect();
        definition
    };
    cluster.put_all((0..100).map(link).collect(), false).expect("accepted");
    assert_eq!(last_steps(&cluster).len(), 101);
    assert!(cluster.view().deployments.is_empty());
}

#[test]
fn cancelling_without_force_restores_what_was() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 3)).expect("accepted");
    let good = cluster.live("/web");
    cluster.is_running_at_once = false;
    let definition = changed(&cluster, "/web", |web| web.cmd = Some("broken".into()));
    let broken = cluster.put(definition).expect("accepted");
    assert_eq!(cluster.live("/web").len(), 6, "three new ones stage beside the old ones");
    assert_eq!(cluster.app("/web").definition.cmd.as_deref(), Some("broken"));

    let reply = cluster.command(Command::CancelDeployment { deployment: broken, force: false });
    assert!(matches!(reply, Ok(Reply::Deployment { .. })));
    assert_eq!(cluster.live("/web"), good, "the old ones were never touched");
    assert_eq!(cluster.app("/web").definition.cmd.as_deref(), Some("sleep 1000"));
    assert!(cluster.view().deployments.is_empty());
}

#[test]
fn cancelling_a_start_removes_the_app_and_cancelling_a_stop_brings_it_back() {
    let mut cluster = Cluster::new();
    cluster.is_running_at_once = false;
    let start = cluster.put(app("/web", 2)).expect("accepted");
    cluster.command(Command::CancelDeployment { deployment: start, force: false }).expect("accepted");
    assert!(!cluster.has_app("/web") && cluster.tasks.is_empty());

    cluster.is_running_at_once = true;
    cluster.put(app("/web", 2)).expect("accepted");
    cluster.is_killing_at_once = false;
    let stop = cluster.delete("/web", false).expect("accepted");
    assert!(!cluster.has_app("/web"), "a removed app is not seen while its tasks end");
    cluster.command(Command::CancelDeployment { deployment: stop, force: false }).expect("accepted");
    cluster.end_killed();
    assert_eq!(cluster.app("/web").counts().running, 2);
    assert!(cluster.view().deployments.is_empty());
}

#[test]
fn cancelling_with_force_leaves_things_as_they_are() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 2)).expect("accepted");
    cluster.is_running_at_once = false;
    let definition = changed(&cluster, "/web", |web| web.cmd = Some("slow".into()));
    let deployment = cluster.put(definition).expect("accepted");
    let cancel = Command::CancelDeployment { deployment: deployment.clone(), force: true };
    assert_eq!(cluster.command(cancel.clone()), Ok(Reply::Done));
    assert!(cluster.view().deployments.is_empty());
    assert_eq!(cluster.app("/web").definition.cmd.as_deref(), Some("slow"));
    assert_eq!(cluster.app("/web").counts().running, 2, "what runs is kept, what does not is given up");
    assert_eq!(cluster.command(cancel), Err(Rejection::UnknownDeployment(deployment)));

    cluster.is_running_at_once = true;
    cluster.scale("/web", 3).expect("accepted");
    assert_eq!(last_steps(&cluster), ["RestartApplication /web"], "the change left undone is made up for");
    let versions =
        cluster.app("/web").instances.values().map(|instance| instance.version).collect::<Vec<_>>();
    assert_eq!(versions, vec![cluster.app("/web").definition.version; 3]);
}

#[test]
fn an_app_that_is_being_removed_can_be_made_again_by_force() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    cluster.is_killing_at_once = false;
    let stop = cluster.delete("/web", false).expect("accepted");
    assert_eq!(cluster.put(app("/web", 2)), Err(Rejection::Locked(vec![stop])));
    cluster.put_all(vec![app("/web", 2)], true).expect("forced");
    assert!(cluster.has_app("/web"));
    cluster.end_killed();
    assert_eq!(cluster.app("/web").counts().running, 2);
    assert!(cluster.view().deployments.is_empty());
}

#[test]
fn an_app_that_is_gone_stays_locked_until_the_deployment_that_removed_it_is_over() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    cluster.is_running_at_once = false;
    let upgrade = changed(&cluster, "/web", |web| web.cmd = Some("sleep 2".into()));
    let both = cluster.put_all(vec![upgrade, app("/new", 0)], false).expect("accepted");
    cluster.is_killing_at_once = false;
    let cancel = Command::CancelDeployment { deployment: both, force: false };
    let Ok(Reply::Deployment { id: back, .. }) = cluster.command(cancel) else { panic!("not cancelled") };
    assert!(!cluster.has_app("/new") && cluster.view().deployments.contains_key(&back));
    assert_eq!(cluster.put(app("/new", 0)), Err(Rejection::Locked(vec![back.clone()])));
    cluster.restart();
    assert_eq!(cluster.put(app("/new", 0)), Err(Rejection::Locked(vec![back])));
    cluster.end_killed();
    cluster.put(app("/new", 0)).expect("nothing holds a lock");
}

#[test]
fn a_cancelled_removal_still_ends() {
    let mut cluster = Cluster::new();
    cluster.put(app("/web", 1)).expect("accepted");
    cluster.is_killing_at_once = false;
    let deployment = cluster.delete("/web", false).expect("accepted");
    cluster.command(Command::CancelDeployment { deployment, force: true }).expect("accepted");
    cluster.end_killed();
    assert!(cluster.records.is_empty());
}

#[test]
fn a_path_names_an_app_or_a_group() {
    for (there, put, is_free) in [
        (&["/a/b", "/a-z"][..], &["/a"][..], false),
        (&["/a/b"], &["/a/b/c"], false),
        (&["/a"], &["/a/b/c"], false),
        (&["/a/b"], &["/a/c", "/a.b", "/a-b/c"], true),
        (&["/a/b"], &["/a/b"], true),
        (&[], &["/a", "/a/b"], false),
        (&[], &["/a/b/c", "/a"], false),
        (&[], &["/a-b", "/a", "/a.b/c", "/ab"], true),
    ] {
        let mut cluster = Cluster::new();
        let apps = |paths: &[&str]| paths.iter().map(|path| app(path, 0)).collect();
        cluster.put_all(apps(there), false).expect("accepted");
        let outcome = cluster.put_all(apps(put), false);
        assert_eq!(outcome.is_ok(), is_free, "{put:?} beside {there:?}: {outcome:?}");
        assert!(is_free || cluster.view().apps.len() == there.len(), "{put:?} beside {there:?}");
    }
}

#[test]
fn what_was_removed_does_not_come_back_below_another_app() {
    let mut cluster = Cluster::new();
    cluster.put(app("/a/b", 1)).expect("accepted");
    cluster.is_killing_at_once = false;
    let deployment = cluster.delete("/a/b", false).expect("accepted");
    cluster.put(app("/a", 0)).expect("nobody sees the other one");
    let cancel = Command::CancelDeployment { deployment, force: false };
    assert!(cluster.command(cancel).is_err());
    assert!(!cluster.has_app("/a/b"));
}

#[test]
fn only_so_many_deployments_run() {
    let mut cluster = Cluster::new();
    cluster.is_running_at_once = false;
    for index in 0..100 {
        let mut definition = app(&format!("/app{index}"), 1);
        definition.port_definitions.clear();
        cluster.put(definition).expect("accepted");
    }
    let mut more = app("/more", 1);
    more.port_definitions.clear();
    assert_eq!(cluster.put(more), Err(Rejection::TooManyDeployments(100)));
    let definition = changed(&cluster, "/app5", |app| app.instances = 2);
    assert!(cluster.put_all(vec![definition], true).is_ok(), "one that takes another's place is allowed");
}

#[test]
fn unknown_things_are_refused() {
    let mut cluster = Cluster::new();
    let unknown = Rejection::UnknownApp(id("/web"));
    assert_eq!(cluster.delete("/web", true), Err(unknown.clone()));
    assert_eq!(cluster.command(Command::Restart { app: id("/web"), force: true }), Err(unknown.clone()));
    assert_eq!(cluster.command(Command::ResetDelay { app: id("/web") }), Err(unknown));
    cluster.put(app("/web", 1)).expect("accepted");
    assert_eq!(
        cluster.command(Command::ResetDelay { app: id("/web") }),
        Err(Rejection::NotQueued(id("/web")))
    );
    let task = mesonet_model::TaskId::new("nobody");
    let kill = Command::KillTasks { tasks: vec![task.clone()], scale: false, force: false };
    assert_eq!(cluster.command(kill), Err(Rejection::UnknownTask(task)));
}

#[test]
fn service_ports_are_assigned_and_kept() {
    let mut cluster = Cluster::new();
    cluster.put(app("/a", 0)).expect("accepted");
    let mut fixed = app("/b", 0);
    fixed.port_definitions = vec![port(10_001, None), port(0, None)];
    cluster.put(fixed).expect("accepted");
    cluster.put(app("/c", 0)).expect("accepted");
    let ports = |cluster: &Cluster, path: &str| -> Vec<u16> {
        cluster.app(path).definition.ports().iter().map(|port| port.service_port).collect()
    };
    assert_eq!(ports(&cluster, "/a"), [10_000]);
    assert_eq!(ports(&cluster, "/b"), [10_001, 10_002], "chosen by the user, and the next free one");
    assert_eq!(ports(&cluster, "/c"), [10_003]);

    let mut again = app("/a", 0);
    again.port_definitions = vec![port(0, Some("admin")), port(0, Some("http"))];
    cluster.put(again).expect("accepted");
    assert_eq!(
        ports(&cluster, "/a"),
        [10_000, 10_004],
        "the first one takes the place of the old one's index"
    );

    let mut same = app("/d", 0);
    same.port_definitions = vec![port(10_000, None)];
    cluster.put(same).expect("two apps may ask for the same port");

    let mut many = app("/many", 0);
    many.port_definitions = (0..6).map(|_| port(0, None)).collect();
    assert_eq!(cluster.put(many), Err(Rejection::ServicePortsExhausted { first: 10_000, last: 10_009 }));
    cluster.delete("/b", false).expect("accepted");
    let mut many = app("/many", 0);
    many.port_definitions = (0..6).map(|_| port(0, None)).collect();
    cluster.put(many).expect("ports of removed apps are free again");
}

#[test]
fn every_kind_of_action_has_its_name() {
    let kinds = [
        (ActionKind::StartApplication, "StartApplication"),
        (ActionKind::ScaleApplication, "ScaleApplication"),
        (ActionKind::StopApplication, "StopApplication"),
        (ActionKind::RestartApplication, "RestartApplication"),
    ];
    for (kind, name) in kinds {
        assert_eq!(kind.as_str(), name);
    }
}
