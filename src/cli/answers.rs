//! The parts of Marathon's answers that the command line shows. What they say beyond that is not read, so that a
//! newer API can be asked.

use std::collections::BTreeMap;

use mesonet_model::{AppId, Timestamp};
use serde::Deserialize;
use serde_json::Value;

/// `GET /v2/apps`.
#[derive(Debug, Deserialize)]
pub struct Apps {
    pub apps: Vec<App>,
}

/// `GET /v2/apps/{id}`.
#[derive(Debug, Deserialize)]
pub struct OneApp {
    pub app: App,
}

/// An app and how many of its instances are in which state.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct App {
    pub id: AppId,
    pub version: Timestamp,
    pub instances: u32,
    pub cpus: f64,
    pub mem: f64,
    pub disk: f64,
    pub cmd: Option<String>,
    #[serde(default)]
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub container: Option<Value>,
    #[serde(default)]
    pub env: BTreeMap<String, Value>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub port_definitions: Vec<Port>,
    #[serde(default)]
    pub tasks_staged: u32,
    #[serde(default)]
    pub tasks_running: u32,
    #[serde(default)]
    pub tasks_healthy: u32,
    #[serde(default)]
    pub tasks_unhealthy: u32,
    #[serde(default)]
    pub deployments: Vec<Reference>,
    #[serde(default)]
    pub tasks: Vec<Task>,
    pub last_task_failure: Option<TaskFailure>,
}

/// A port of an app on the host's network.
#[derive(Debug, Deserialize)]
pub struct Port {
    pub port: u16,
    pub protocol: String,
    pub name: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Something named by its id.
#[derive(Debug, Deserialize)]
pub struct Reference {
    pub id: String,
}

/// How a task failed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskFailure {
    pub task_id: String,
    pub state: String,
    pub message: String,
    pub timestamp: Timestamp,
}

/// `GET /v2/tasks` and `GET /v2/apps/{id}/tasks`.
#[derive(Debug, Deserialize)]
pub struct Tasks {
    pub tasks: Vec<Task>,
}

/// A running instance.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    pub id: String,
    pub app_id: AppId,
    pub host: String,
    pub state: String,
    #[serde(default)]
    pub ports: Vec<u16>,
    pub started_at: Option<Timestamp>,
    #[serde(default)]
    pub health_check_results: Vec<HealthResult>,
}

/// The result of a task's health check.
#[derive(Debug, Deserialize)]
pub struct HealthResult {
    pub alive: bool,
}

/// An element of `GET /v2/deployments`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    pub id: String,
    pub version: Timestamp,
    pub affected_apps: Vec<AppId>,
    pub current_step: u32,
    pub total_steps: u32,
    #[serde(default)]
    pub current_actions: Vec<Action>,
}

/// What a deployment does to an app.
#[derive(Debug, Deserialize)]
pub struct Action {
    pub action: String,
}

/// `GET /v2/queue`.
#[derive(Debug, Deserialize)]
pub struct Queue {
    pub queue: Vec<QueueItem>,
}

/// An app that waits for offers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueItem {
    pub app: QueuedApp,
    pub delay: Delay,
    pub processed_offers_summary: OffersSummary,
}

/// Which app waits.
#[derive(Debug, Deserialize)]
pub struct QueuedApp {
    pub id: AppId,
    #[serde(default)]
    pub networks: Vec<AppNetwork>,
}

/// A network of an app.
#[derive(Debug, Deserialize)]
pub struct AppNetwork {
    /// Of a virtual one.
    pub name: Option<String>,
}

/// The names in `GET /v1/networks`.
#[derive(Debug, Deserialize)]
pub struct KnownNetworks {
    pub networks: Vec<KnownNetwork>,
}

/// A virtual network.
#[derive(Debug, Deserialize)]
pub struct KnownNetwork {
    pub name: String,
}

/// How long an app is held back because of failures.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delay {
    pub time_left_seconds: u64,
}

/// Why the latest offers did not fit.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OffersSummary {
    #[serde(default)]
    pub reject_summary_last_offers: Vec<Reject>,
}

/// How many offers failed a test.
#[derive(Debug, Deserialize)]
pub struct Reject {
    pub reason: String,
    pub declined: u64,
}

impl App {
    /// What it runs, in one line.
    pub fn command(&self) -> String {
        let image = || self.container.as_ref()?["docker"]["image"].as_str().map(str::to_owned);
        let args = || self.args.as_ref().filter(|args| !args.is_empty()).map(|args| args.join(" "));
        self.cmd.clone().or_else(args).or_else(image).unwrap_or_default()
    }

    /// Healthy instances, if the app is checked.
    pub fn health(&self) -> String {
        match (self.tasks_healthy, self.tasks_unhealthy) {
            (0, 0) => String::new(),
            (healthy, unhealthy) => format!("{healthy}/{}", healthy + unhealthy),
        }
    }
}

impl QueueItem {
    /// Why it waits, a reason a line.
    pub fn obstacles(&self) -> Vec<String> {
        let left = self.delay.time_left_seconds;
        let held_back = (left > 0).then(|| format!("held back for {left} s because of failures"));
        let rejects = self.processed_offers_summary.reject_summary_last_offers.iter();
        let rejects = rejects.filter(|reject| reject.declined > 0);
        let rejects =
            rejects.map(|reject| format!("{} offers did not fit: {}", reject.declined, reject.reason));
        held_back.into_iter().chain(rejects).collect()
    }

    /// The virtual networks that it is to be in.
    pub fn networks(&self) -> impl Iterator<Item = &str> {
        self.app.networks.iter().filter_map(|network| network.name.as_deref())
    }

    /// Which of them there are not, a line each: no offer fits before somebody makes them.
    pub fn unknown_networks(&self, known: &KnownNetworks) -> Vec<String> {
        let is_unknown = |name: &&str| known.networks.iter().all(|network| network.name != *name);
        self.networks()
            .filter(is_unknown)
            .map(|name| format!("there is no virtual network {name} (mesonet network create)"))
            .collect()
    }
}

impl TaskFailure {
    /// How it ended and why, in one line.
    pub fn text(&self) -> String {
        format!("{}: {}", self.state, self.message)
    }
}

impl Task {
    /// Whether its check passes; nothing if it is not checked.
    pub fn health(&self) -> &'static str {
        match self.health_check_results.as_slice() {
            [] => "",
            results if results.iter().all(|result| result.alive) => "healthy",
            _ => "unhealthy",
        }
    }

    /// Its host ports.
    pub fn ports(&self) -> String {
        self.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_app_waits_for_time_to_pass_and_for_offers_that_fit() {
        let item: QueueItem = serde_json::from_value(json!({
            "app": { "id": "/a" }, "delay": { "overdue": false, "timeLeftSeconds": 7 },
            "processedOffersSummary": { "rejectSummaryLastOffers": [
                { "reason": "UnfulfilledNetwork", "declined": 2, "processed": 3 },
                { "reason": "InsufficientCpus", "declined": 0, "processed": 1 },
            ]},
        }))
        .expect("an item");
        let expected = ["held back for 7 s because of failures", "2 offers did not fit: UnfulfilledNetwork"];
        assert_eq!(item.obstacles(), expected);
    }

    #[test]
    fn an_app_whose_network_there_is_not_says_so() {
        let item: QueueItem = serde_json::from_value(json!({
            "app": { "id": "/a", "networks": [
                { "mode": "container", "name": "dcos" }, { "mode": "container", "name": "blu" }, { "mode": "host" },
            ]},
            "delay": { "overdue": true, "timeLeftSeconds": 0 }, "processedOffersSummary": {},
        }))
        .expect("an item");
        let known = json!({ "networks": [{ "name": "blue" }, { "name": "dcos" }] });
        let known: KnownNetworks = serde_json::from_value(known).expect("networks");
        let expected = ["there is no virtual network blu (mesonet network create)"];
        assert_eq!(item.unknown_networks(&known), expected);
    }
}
