//! Waits until every node has applied a revision.

use std::time::{Duration, Instant};

use clap::Args;
use mesonet_model::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::Session;
use super::duration;
use super::error::CommandError;

/// How often the planes are asked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// `mesonet converge …`
#[derive(Debug, Clone, Args)]
pub struct ConvergeArguments {
    /// The revision [default: the newest one at this moment]
    #[arg(long, value_name = "R")]
    revision: Option<u64>,
    /// How long to wait
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "2s")]
    timeout: Duration,
}

/// `GET /v1/planes`.
#[derive(Debug, Deserialize)]
struct Planes {
    revision: u64,
    planes: Vec<Plane>,
    disconnected: Vec<AwayPlane>,
}

/// How far one plane of one node is.
#[derive(Debug, Deserialize)]
struct Plane {
    node: String,
    plane: String,
    applied: u64,
    #[serde(rename = "behindSince")]
    behind_since: Option<Timestamp>,
}

/// A plane that is not connected any more: nobody knows what it serves meanwhile.
#[derive(Debug, Deserialize)]
struct AwayPlane {
    node: String,
    plane: String,
    applied: u64,
    since: Timestamp,
}

/// Waits, and names who lags if the time is up.
pub fn run(arguments: &ConvergeArguments, session: &Session) -> Result<(), CommandError> {
    let deadline = Instant::now() + arguments.timeout;
    let mut planes: Planes = session.client.get("/v1/planes")?;
    let wanted = arguments.revision.unwrap_or(planes.revision);
    while !planes.have_applied(wanted) {
        if Instant::now() >= deadline {
            let now = super::now();
            return Err(CommandError::Failed(planes.laggards(wanted, arguments.timeout, now)));
        }
        std::thread::sleep(POLL_INTERVAL);
        planes = session.client.get("/v1/planes")?;
    }
    let count = planes.planes.len();
    let line = format!("revision {wanted} is in effect on all {count} planes");
    session.output.value_or_line(&json!({ "revision": wanted, "planes": count }), &line)
}

impl Planes {
    fn have_applied(&self, revision: u64) -> bool {
        self.revision >= revision
            && self.planes.iter().all(|plane| plane.applied >= revision)
            && self.disconnected.iter().all(|away| away.applied >= revision)
    }

    fn laggards(&self, revision: u64, waited: Duration, now: Timestamp) -> String {
        let mut text =
            format!("revision {revision} is not in effect everywhere after {}", duration::short(waited));
        if self.revision < revision {
            text.push_str(&format!("\n  the newest revision is {}", self.revision));
        }
        for plane in self.planes.iter().filter(|plane| plane.applied < revision) {
            text.push_str(&format!("\n  {} of node {} is at {}", plane.plane, plane.node, plane.applied));
            if let Some(since) = plane.behind_since {
                text.push_str(&format!(", behind for {}", super::age(now, since)));
            }
        }
        for away in self.disconnected.iter().filter(|away| away.applied < revision) {
            let AwayPlane { node, plane, applied, since } = away;
            let age = super::age(now, *since);
            text.push_str(&format!(
                "\n  {plane} of node {node} is not connected for {age}, was at {applied}"
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_laggard_is_named() {
        let now = Timestamp::from_millis(60_000);
        let since = Timestamp::from_millis(57_000);
        let plane = |node: &str, plane: &str, applied| {
            let behind_since = (applied < 9).then_some(since);
            Plane { node: node.into(), plane: plane.into(), applied, behind_since }
        };
        let away = AwayPlane { node: "c".into(), plane: "lb".into(), applied: 7, since };
        let planes = Planes {
            revision: 9,
            planes: vec![plane("a", "dns", 9), plane("a", "lb", 8), plane("b", "dns", 7)],
            disconnected: vec![away],
        };
        assert!(planes.have_applied(7));
        assert!(!planes.have_applied(9));
        let text = planes.laggards(9, Duration::from_secs(2), now);
        let expected = [
            "revision 9 is not in effect everywhere after 2s",
            "  lb of node a is at 8, behind for 3s",
            "  dns of node b is at 7, behind for 3s",
            "  lb of node c is not connected for 3s, was at 7",
        ];
        assert_eq!(text, expected.join("\n"));
        assert!(planes.laggards(10, Duration::from_secs(2), now).contains("the newest revision is 9"));
    }
}
