//! What is shown of deployments, the queue, groups, services and planes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::http::StatusCode;
use mesonet_marathon::{
    ActionKind, AppView, Deployment, DeploymentAction, DeploymentStep, InstanceView, NoMatchReason,
    QueueEntry, RejectSummary, TaskFailure, UnusedOffer,
};
use mesonet_model::{
    Agent, AgentId, AgentInfo, AgentState, AppId, DeploymentId, Endpoint, EndpointKey, EndpointState,
    FrameworkId, HealthResult, Outage, Plane, PlaneReport, ReadinessResponse, ReadinessResult, Resources,
    Revision, Scalar, Service, TaskId, TaskKey, TaskState, Timestamp,
};
use serde_json::{Value, json};

use crate::NodeOrder;

use super::fixture::{Fixture, app, instance, run};

pub(super) const TIME: Timestamp = Timestamp::from_millis(1_795_208_400_000);

/// A deployment of an app in its second step.
pub(super) fn deployment(id: &str) -> Deployment {
    let app = AppId::parse(id).expect("id");
    let step = |kind| DeploymentStep { actions: vec![DeploymentAction { kind, app: app.clone() }] };
    Deployment {
        id: DeploymentId::new("d1"),
        version: TIME,
        affected_apps: vec![app.clone()],
        steps: vec![step(ActionKind::StartApplication), step(ActionKind::ScaleApplication)],
        current: 1,
        original: Vec::new(),
        target: Vec::new(),
    }
}

#[tokio::test]
async fn deployments_are_listed_and_cancelled() {
    let fixture = Fixture::with_apps(&[json!({"id": "/web", "cmd": "a"})]).await;
    assert_eq!(fixture.get("/v2/deployments").await.json(), json!([]));
    let add = || {
        fixture.change(|state| {
            let id = DeploymentId::new("d1");
            state.marathon.deployments.insert(id.clone(), Arc::new(deployment("/web")));
            app(state, "/web").deployments = vec![id];
        });
    };
    add();
    let start = json!({"actions": [{"action": "StartApplication", "app": "/web"}]});
    let scale = json!({"actions": [{"action": "ScaleApplication", "app": "/web"}]});
    assert_eq!(
        fixture.get("/v2/deployments/").await.json(),
        json!([{
            "id": "d1", "version": "2026-11-20T21:00:00.000Z", "affectedApps": ["/web"], "affectedPods": [],
            "steps": [start, scale], "currentStep": 2, "totalSteps": 2,
            "currentActions": [{"action": "ScaleApplication", "app": "/web", "readinessCheckResults": []}],
        }])
    );
    assert_eq!(fixture.get("/v2/apps/web").await.json()["app"]["deployments"], json!([{"id": "d1"}]));
    let forced = fixture.send("DELETE", "/v2/deployments/d1?force=True", "").await;
    assert_eq!((forced.status, forced.text.as_str()), (StatusCode::ACCEPTED, ""));
    add();
    let rolled_back = fixture.send("DELETE", "/v2/deployments/d1", "").await;
    assert_eq!(rolled_back.status, StatusCode::OK);
    assert!(rolled_back.json()["deploymentId"].is_string());
    let unknown = fixture.send("DELETE", "/v2/deployments/d1", "").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(unknown.json(), json!({"message": "DeploymentPlan d1 does not exist"}));
}

#[tokio::test]
async fn what_readiness_checks_find_is_shown_while_a_deployment_waits_for_it() {
    let check = json!({"name": "warm", "portName": "web", "preserveLastResponse": true});
    let ports = json!([{"port": 0, "name": "web"}]);
    let web = json!({"id": "/web", "cmd": "a", "portDefinitions": ports, "readinessChecks": [check]});
    let fixture = Fixture::with_apps(&[web]).await;
    let shown = |app: &Value| app["app"]["readinessCheckResults"].clone();
    let embedded = "/v2/apps/web?embed=app.readiness";
    assert_eq!(shown(&fixture.get("/v2/apps/web").await.json()), json!(null));
    assert_eq!(shown(&fixture.get(embedded).await.json()), json!([]));
    let response =
        ReadinessResponse { status: 503, content_type: "text/plain".to_owned(), body: "10 %".to_owned() };
    let waiting = ReadinessResult { ready: false, last_response: Some(response) };
    fixture.change(|state| {
        state.marathon.deployments.insert(DeploymentId::new("d1"), Arc::new(deployment("/web")));
        let app = app(state, "/web");
        for (number, task_state, readiness) in [
            (1, TaskState::Running, Some(waiting.clone())),
            (2, TaskState::Running, Some(ReadinessResult { ready: true, last_response: None })),
            (3, TaskState::Running, None),
            (4, TaskState::Staging, Some(ReadinessResult::default())),
        ] {
            let each = InstanceView { readiness, ..instance(app, number, task_state) };
            app.instances.insert(each.task.clone(), Arc::new(each));
        }
    });
    let task = |number: u16| format!("web.instance-{number}._app.1");
    let response = json!({"status": 503, "contentType": "text/plain", "body": "10 %"});
    let expected = json!([
        {"name": "warm", "taskId": task(1), "ready": false, "lastResponse": response},
        {"name": "warm", "taskId": task(2), "ready": true},
    ]);
    assert_eq!(shown(&fixture.get(embedded).await.json()), expected);
    let listed = fixture.get("/v2/apps?embed=apps.readiness").await.json();
    assert_eq!(listed["apps"][0]["readinessCheckResults"], expected);
    let deployments = fixture.get("/v2/deployments").await.json();
    assert_eq!(deployments[0]["currentActions"][0]["readinessCheckResults"], expected);
}

fn queued() -> QueueEntry {
    let summary =
        |declined| RejectSummary { reason: NoMatchReason::InsufficientCpus, declined, processed: 3 };
    QueueEntry {
        count: 2,
        since: TIME,
        backoff_until: None,
        processed_offers: 7,
        unused_offers: 6,
        last_unused_offer_at: Some(TIME),
        last_used_offer_at: None,
        last_offers: vec![summary(1)],
        all_offers: vec![summary(3)],
        unused: vec![Arc::new(UnusedOffer {
            agent: AgentId::new("c-S0"),
            host: "127.0.0.1".to_owned(),
            cpus: Scalar::from_units(1),
            mem: Scalar::from_units(64),
            reasons: vec![NoMatchReason::InsufficientCpus],
            timestamp: TIME,
        })],
    }
}

#[tokio::test]
async fn the_queue_says_why_apps_wait() {
    let fixture = Fixture::with_apps(&[
        json!({"id": "/web", "cmd": "a", "cpus": 64}),
        json!({"id": "/calm", "cmd": "a"}),
    ])
    .await;
    fixture.change(|state| app(state, "/web").queue = Some(Arc::new(queued())));
    let queue = fixture.get("/v2/queue").await.json()["queue"].clone();
    assert_eq!(queue.as_array().map(Vec::len), Some(1));
    assert_eq!(queue[0]["app"]["id"], "/web");
    assert_eq!((&queue[0]["count"], &queue[0]["since"]), (&json!(2), &json!("2026-11-20T21:00:00.000Z")));
    assert_eq!(queue[0]["delay"], json!({"timeLeftSeconds": 0, "overdue": true}));
    let until = Some(TIME.plus(std::time::Duration::from_millis(89_500)));
    let waiting = QueueEntry { backoff_until: until, ..queued() };
    fixture.change(|state| app(state, "/web").queue = Some(Arc::new(waiting)));
    let delayed = fixture.get("/v2/queue").await.json()["queue"][0]["delay"].clone();
    assert_eq!(delayed, json!({"timeLeftSeconds": 90, "overdue": false}), "by the control plane's clock");
    assert_eq!(
        queue[0]["processedOffersSummary"],
        json!({
            "processedOffersCount": 7, "unusedOffersCount": 6, "lastUnusedOfferAt": "2026-11-20T21:00:00.000Z",
            "rejectSummaryLastOffers": [{"reason": "InsufficientCpus", "declined": 1, "processed": 3}],
            "rejectSummaryLaunchAttempt": [{"reason": "InsufficientCpus", "declined": 3, "processed": 3}],
        })
    );
    assert!(queue[0].get("lastUnusedOffers").is_none());
    let offers = fixture.get("/v2/queue?embed=lastUnusedOffers").await.json();
    let unused = &offers["queue"][0]["lastUnusedOffers"][0];
    assert_eq!(unused["offer"]["hostname"], "127.0.0.1");
    assert_eq!(unused["reason"], json!(["InsufficientCpus"]));
    fixture.change(|state| {
        let mut entry = queued();
        entry.backoff_until = Some(Timestamp::from_millis(i64::MAX));
        app(state, "/web").queue = Some(Arc::new(entry));
    });
    assert_eq!(fixture.get("/v2/queue").await.json()["queue"][0]["delay"]["overdue"], json!(false));
    let reset = fixture.send("DELETE", "/v2/queue//web/delay", "").await;
    assert_eq!((reset.status, reset.text.as_str()), (StatusCode::NO_CONTENT, ""));
    for app in ["/calm", "/unknown"] {
        let refused = fixture.send("DELETE", &format!("/v2/queue{app}/delay"), "").await;
        assert_eq!(refused.status, StatusCode::NOT_FOUND);
        let message = format!("Application {app} not found in tasks queue.");
        assert_eq!(refused.json(), json!({"message": message}));
    }
}

#[tokio::test]
async fn counts_health_and_the_last_failure_are_shown() {
    let fixture = Fixture::with_apps(&[json!({"id": "/web", "cmd": "a"})]).await;
    fixture.change(|state| {
        let id = AppId::parse("/web").expect("id");
        let app = app(state, "/web");
        for (number, task_state, healthy) in [
            (1, TaskState::Running, Some(true)),
            (2, TaskState::Running, Some(false)),
            (3, TaskState::Staging, None),
        ] {
            let mut each = instance(app, number, task_state);
            each.healthy = healthy;
            each.health_results = vec![HealthResult {
                consecutive_failures: u32::from(healthy == Some(false)),
                first_success: healthy.map(|_| TIME),
                last_failure: healthy.filter(|healthy| !healthy).map(|_| TIME),
                ..HealthResult::default()
            }];
            app.instances.insert(each.task.clone(), Arc::new(each));
        }
        app.last_failure = Some(Arc::new(TaskFailure {
            app: id,
            task: TaskId::new("web.instance-0._app.1"),
            agent: AgentId::new("c-S0"),
            host: "127.0.0.1".to_owned(),
            state: TaskState::Failed,
            message: "exit 1".to_owned(),
            version: TIME,
            timestamp: TIME,
        }));
    });
    let app = fixture.get("/v2/apps/web?embed=app.taskStats").await.json()["app"].clone();
    for (key, expected) in
        [("tasksStaged", 1), ("tasksRunning", 2), ("tasksHealthy", 1), ("tasksUnhealthy", 1)]
    {
        assert_eq!(app[key], json!(expected), "{key}");
    }
    assert_eq!(app["lastTaskFailure"]["message"], "exit 1");
    assert_eq!(app["lastTaskFailure"]["state"], "TASK_FAILED");
    let task = &app["tasks"][1]["id"];
    let result = json!({
        "alive": false, "consecutiveFailures": 1, "firstSuccess": TIME, "lastSuccess": null, "lastFailure": TIME,
        "lastFailureCause": null, "taskId": task,
        "instanceId": task.as_str().expect("text").replace("._app.1", ""),
    });
    assert_eq!(app["tasks"][1]["healthCheckResults"], json!([result]));
    assert_eq!(app["tasks"][2]["healthCheckResults"], json!([]), "nothing was found yet");
    assert_eq!(app["tasks"][2]["startedAt"], json!(null));
    assert_eq!(app["taskStats"]["totalSummary"]["stats"]["counts"]["running"], json!(2));
    let listed = fixture.get("/v2/apps").await.json()["apps"][0].clone();
    assert!(listed.get("lastTaskFailure").is_none());
    let listed = fixture.get("/v2/apps?embed=apps.lastTaskFailure").await.json()["apps"][0].clone();
    assert_eq!(listed["lastTaskFailure"]["host"], "127.0.0.1");
}

#[tokio::test]
async fn groups_are_a_tree_that_can_only_be_read() {
    let fixture = Fixture::with_apps(&[
        json!({"id": "/web", "cmd": "a"}),
        json!({"id": "/a/b/c", "cmd": "a"}),
        json!({"id": "/a/d", "cmd": "a"}),
    ])
    .await;
    let root = fixture.get("/v2/groups").await.json();
    assert_eq!(root["id"], "/");
    assert_eq!(root["apps"][0]["id"], "/web");
    assert_eq!(root["groups"][0]["id"], "/a");
    assert_eq!(root["groups"][0]["apps"][0]["id"], "/a/d");
    assert_eq!(root["groups"][0]["groups"][0]["apps"][0]["id"], "/a/b/c");
    assert_eq!(fixture.get("/v2/groups//a/b").await.json()["id"], "/a/b");
    let only_groups = fixture.get("/v2/groups?embed=group.groups").await.json();
    assert_eq!((&only_groups["apps"], &only_groups["groups"][0]["id"]), (&json!([]), &json!("/a")));
    assert_eq!(fixture.get("/v2/groups/a/apps").await.json()["apps"].as_array().map(Vec::len), Some(2));
    assert_eq!(fixture.get("/v2/groups/a/versions").await.json(), json!(["2026-11-20T21:00:00.004Z"]));
    let missing = fixture.get("/v2/groups/web").await;
    assert_eq!(missing.json(), json!({"message": "Group '/web' does not exist"}));
    for method in ["POST", "PUT", "DELETE"] {
        let answer = fixture.send(method, "/v2/groups/a", "{}").await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
        assert!(answer.json()["message"].as_str().is_some_and(|text| text.contains("Groups follow")));
    }
    assert_eq!(Fixture::new().get("/v2/groups").await.json()["apps"], json!([]));
}

#[tokio::test]
async fn groups_of_an_app_that_is_very_deep_are_shown() {
    let fixture = Fixture::with_apps(&[json!({"id": "/web", "cmd": "a"})]).await;
    let deep = AppId::parse(&"/a".repeat(20_000)).expect("it was accepted once");
    fixture.change(|state| {
        let mut view = AppView::clone(app(state, "/web"));
        Arc::make_mut(&mut view.definition).id = deep.clone();
        state.marathon.apps.insert(deep.clone(), Arc::new(view));
    });
    let root = fixture.get("/v2/groups").await;
    assert_eq!(root.status, StatusCode::OK);
    assert!(root.text.contains(deep.as_str()), "the app is shown");
    assert_eq!(root.text.matches(r#""groups":["#).count(), 129, "the root and so many below it");
    let apps = fixture.get("/v2/groups/apps").await.json();
    assert_eq!(apps["apps"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn marathon_says_who_leads() {
    let fixture = Fixture::new();
    let info = fixture.get("/v2/info").await.json();
    for key in ["marathon_config", "zookeeper_config", "http_config"] {
        assert!(info[key].is_object(), "{key}");
    }
    assert_eq!((&info["leader"], &info["frameworkId"]), (&json!("127.0.0.1:8080"), &json!("c-0000")));
    assert_eq!(fixture.get("/v2/leader").await.json(), json!({"leader": "127.0.0.1:8080"}));
    let abdicated = fixture.send("DELETE", "/v2/leader", "").await;
    assert_eq!(abdicated.status, StatusCode::OK);
    assert_eq!(abdicated.json(), json!({"message": "Leadership abdicated"}));
    assert_eq!(fixture.get("/v2/leader").await.json(), json!({"leader": "127.0.0.1:8080"}));
    assert_eq!(fixture.get("/v2/plugins").await.json(), json!({"plugins": []}));
}

#[tokio::test]
async fn the_front_satisfies_the_dcos_command_line() {
    let fixture = Fixture::new();
    let head = fixture.send("HEAD", "/pkgpanda/active.buildinfo.full.json", "").await;
    assert_eq!(head.status, StatusCode::OK);
    let id = fixture.get("/metadata").await.json()["CLUSTER_ID"].clone();
    assert_eq!(id, "6f6e7a3e-2f1f-4b0e-8d3b-1d0f6a4c9b11");
    assert!(fixture.get("/dcos-metadata/dcos-version.json").await.json()["version"].is_string());
    let hosts = fixture.get("/mesos_dns/v1/hosts/marathon.mesos").await.json();
    assert_eq!(hosts, json!([{"host": "marathon.mesos.", "ip": "127.0.0.1"}]));
    let none = fixture.get("/mesos_dns/v1/hosts/none.mesos").await.json();
    assert_eq!(none, json!([{"host": "", "ip": ""}]));
    fixture.change(add_agent);
    for path in ["/mesos/state-summary", "/mesos/master/state-summary"] {
        let summary = fixture.get(path).await.json();
        assert_eq!(summary["slaves"][0]["pid"], "slave(1)@127.0.0.1:5051");
        assert_eq!(summary["slaves"][0]["resources"]["ports"], "[31000-31009]");
        assert_eq!(summary["slaves"][0]["TASK_RUNNING"], json!(0));
    }
}

pub(super) fn add_agent(state: &mut crate::State) {
    let id = AgentId::new("c-S0");
    let resources = Resources {
        ports: mesonet_model::PortRanges::span(31000, 31009),
        cpus: Scalar::from_units(4),
        ..Resources::default()
    };
    let info = AgentInfo {
        hostname: "127.0.0.1".to_owned(),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 5051,
        resources,
        attributes: Vec::new(),
        container_networks: false,
    };
    let agent = Agent {
        id: id.clone(),
        info,
        other_addresses: Vec::new(),
        state: AgentState::Active,
        draining: false,
        registered_at: TIME,
    };
    state.cluster.agents.insert(id, Arc::new(agent));
}

/// Two services, one of them with an endpoint, the other one refused by a node.
fn add_services(state: &mut crate::State) {
    let named = "tcp/web@marathon:80".parse().expect("key");
    let fixed = "udp/10.0.0.1:53".parse().expect("key");
    for (key, ipv4) in [(&named, [127, 11, 0, 1]), (&fixed, [10, 0, 0, 1])] {
        let service = Service { ipv4: Some(ipv4.into()), ..Service::new(Clone::clone(key)) };
        state.cluster.services.insert(service.key.clone(), Arc::new(service));
    }
    let endpoint = EndpointKey {
        service: named,
        task: TaskKey::new(FrameworkId::new("c-0000"), TaskId::new("web.1")),
        address: SocketAddr::from(([127, 0, 0, 1], 31000)),
    };
    let agent = AgentId::new("c-S0");
    let each = Endpoint::new(agent.clone(), EndpointState::Ready, 1);
    state.cluster.endpoints.insert(endpoint, Arc::new(each));
    let report = PlaneReport {
        node: agent.clone(),
        plane: Plane::Lb,
        applied: Revision(1),
        busy: BTreeSet::new(),
        failed: BTreeMap::from([(fixed, "address in use".to_owned())]),
        outage: Some(Outage { since: Timestamp::from_millis(1000), until: Timestamp::from_millis(4000) }),
        tunnel: None,
    };
    state.planes.insert((agent, Plane::Lb), Arc::new(report));
    state.plane_history.committed(Revision(2), Timestamp::from_millis(5000));
    let away = Timestamp::from_millis(7000);
    state.plane_history.disconnected(AgentId::new("c-S1"), Plane::Dns, Revision(1), away);
}

#[tokio::test]
async fn services_planes_and_view_are_shown() {
    let fixture = Fixture::new();
    fixture.change(add_services);
    assert_eq!(
        fixture.get("/v1/services").await.json(),
        json!({"revision": 2, "services": [
            {
                "service": "tcp/web@marathon:80", "name": "web.marathon.l4lb.thisdcos.directory",
                "protocol": "tcp", "port": 80, "addresses": ["127.11.0.1"],
                "endpoints": [{
                    "task": "web.1", "framework": "c-0000", "agent": "c-S0", "address": "127.0.0.1:31000",
                    "state": "ready", "weight": 100, "healthy": true, "reason": "serving",
                }],
                "failures": [],
            },
            {
                "service": "udp/10.0.0.1:53", "name": null, "protocol": "udp", "port": 53,
                "addresses": ["10.0.0.1"], "endpoints": [],
                "failures": [{"node": "c-S0", "plane": "lb", "reason": "address in use"}],
            },
        ]})
    );
    assert_eq!(
        fixture.get("/v1/planes").await.json(),
        json!({
            "revision": 2,
            "planes": [{
                "node": "c-S0", "plane": "lb", "applied": 1, "lag": 1, "behindSince": "1970-01-01T00:00:05.000Z",
                "outage": {"since": "1970-01-01T00:00:01.000Z", "until": "1970-01-01T00:00:04.000Z"},
                "silent": null, "omissions": null,
            }],
            "disconnected": [{"node": "c-S1", "plane": "dns", "applied": 1, "since": "1970-01-01T00:00:07.000Z"}],
        })
    );
    let view: mesonet_model::ClusterView =
        serde_json::from_str(&fixture.get("/v1/view").await.text).expect("view");
    assert_eq!((view.revision, view.services.len()), (Revision(2), 2));
    let ready = fixture.get("/v1/health/ready").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (StatusCode::OK, &json!(true)));
    fixture.change(|state| state.marathon.framework = None);
    assert_eq!(fixture.get("/v1/health/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn sandbox_files_are_read_as_in_mesos() {
    let fixture = Fixture::with_apps(&[json!({"id": "/web", "cmd": "a"})]).await;
    fixture.change(|state| run(state, "/web", 1));
    let base = "/v1/tasks/web.instance-1._app.1/files";
    for (query, status, body) in [
        ("/stdout", 200, json!({"offset": 14, "data": ""})),
        ("/stdout?offset=-1&length=0", 200, json!({"offset": 14, "data": ""})),
        ("/stdout?offset=6", 200, json!({"offset": 6, "data": "sandbox\n"})),
        ("/stdout?offset=0&length=5", 200, json!({"offset": 0, "data": "hello"})),
        ("/stdout?offset=99&length=-1", 200, json!({"offset": 99, "data": ""})),
        ("/other", 404, json!({"message": "task 'web.instance-1._app.1' has no file 'other'"})),
        ("/../stdout", 400, json!({"message": "A file's path must lead downwards from the sandbox"})),
        (
            "/stdout?offset=x",
            400,
            json!({"message": "parameter 'offset' must be a number from -1 on, not 'x'"}),
        ),
    ] {
        let answer = fixture.get(&format!("{base}{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.json()), (status, body), "{query}");
    }
}

#[tokio::test]
async fn metrics_are_text_or_json() {
    let fixture = Fixture::not_started();
    let text = fixture.get("/metrics").await;
    assert!(text.header("content-type").starts_with("text/plain; version=0.0.4"));
    assert!(text.text.contains("mesonet_test_total 0"), "{}", text.text);
    let json = fixture.send_with("GET", "/metrics", &[("accept", "application/json")], "").await.json();
    assert_eq!(json["counters"]["mesonet_test_total"], json!({"count": 0.0}));
}

#[tokio::test]
async fn nodes_are_drained_by_id_and_by_host() {
    let fixture = Fixture::new();
    fixture.change(add_agent);
    let (agent, host) = {
        let state = fixture.state.borrow().clone().expect("a state");
        let agent = state.cluster.agents.values().next().expect("an agent");
        (agent.id.clone(), agent.info.hostname.clone())
    };
    let drained = fixture.send("POST", &format!("/v1/nodes/{agent}/drain"), "").await;
    assert_eq!((drained.status, drained.header("mesonet-revision")), (StatusCode::OK, "1"));
    let undrained = fixture.send("POST", &format!("/v1/nodes/{host}/undrain"), "").await;
    assert_eq!(undrained.json(), json!({ "agent": agent, "revision": 2 }));
    let orders = fixture.orders.lock().expect("orders").clone();
    assert_eq!(orders, [NodeOrder::Drain(agent.clone()), NodeOrder::Undrain(agent.clone())]);
    let unknown = fixture.send("POST", "/v1/nodes/nobody/drain", "").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(fixture.get(&format!("/v1/nodes/{agent}/drain")).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn only_a_lost_node_is_removed() {
    let fixture = Fixture::new();
    for (state, expected) in [
        (AgentState::Active, StatusCode::BAD_REQUEST),
        (AgentState::Suspect, StatusCode::OK),
        (AgentState::Unreachable, StatusCode::OK),
    ] {
        fixture.change(add_agent);
        fixture.change(|all| {
            let agents: Vec<Agent> =
                all.cluster.agents.values().map(|agent| agent.as_ref().clone()).collect();
            for agent in agents {
                all.cluster.agents.insert(agent.id.clone(), Arc::new(Agent { state, ..agent }));
            }
        });
        let agent = fixture.state.borrow().clone().expect("a state").cluster.agents.keys().next().cloned();
        let agent = agent.expect("an agent");
        let answer = fixture.send("POST", &format!("/v1/nodes/{agent}/remove"), "").await;
        assert_eq!(answer.status, expected, "{state:?}");
        let last = fixture.orders.lock().expect("orders").last().cloned();
        let is_ordered = last == Some(NodeOrder::Remove(agent));
        assert_eq!(is_ordered, expected == StatusCode::OK, "{state:?}");
    }
    let confirmed = fixture.send("POST", "/v1/nodes/confirm-removal", "").await;
    assert_eq!(confirmed.status, StatusCode::OK);
    let last = fixture.orders.lock().expect("orders").last().cloned();
    assert_eq!(last, Some(NodeOrder::ConfirmRemoval));
}
