//! Apps that tests run.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Cluster, equal, eventually, http};

/// A web server that says who it is (`apps/whoami.py`), with a VIP of the app's name at port 8080.
pub fn web(id: &str, instances: u32) -> Value {
    let name = id.trim_start_matches('/');
    python(id, "whoami.py", instances, "tcp", &format!("/{name}:8080"))
}

/// A web server that says who it is, is there at once, and answers one request of a connection (`apps/brief.py`), with a VIP
/// as that of [`web`].
pub fn brief(id: &str, instances: u32) -> Value {
    let script = format!("{}/tests/e2e/apps/brief.py", env!("CARGO_MANIFEST_DIR"));
    let mut app = web(id, instances);
    app["args"] = json!(["python3", "-IS", script]);
    app
}

/// A UDP echo server (`apps/echo_udp.py`), with a VIP of the app's name at port 7007.
pub fn echo_udp(id: &str, instances: u32) -> Value {
    let name = id.trim_start_matches('/');
    python(id, "echo_udp.py", instances, "udp", &format!("/{name}:7007"))
}

/// An app that does nothing for a long time and has no ports.
pub fn idle(id: &str, instances: u32) -> Value {
    json!({ "id": id, "cmd": "exec sleep 3600", "instances": instances, "cpus": 0.1, "mem": 16, "portDefinitions": [] })
}

fn python(id: &str, script: &str, instances: u32, protocol: &str, vip: &str) -> Value {
    let script = format!("{}/tests/e2e/apps/{script}", env!("CARGO_MANIFEST_DIR"));
    json!({
        "id": id,
        "args": ["python3", script],
        "instances": instances,
        "cpus": 0.1,
        "mem": 32,
        "portDefinitions": [{ "name": "http", "protocol": protocol, "port": 0, "labels": { "VIP_0": vip } }],
    })
}

/// What an instance of [`web`] says of itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub task: String,
    pub pid: u32,
    pub greeting: String,
}

/// Asks whoever answers behind an address.
pub fn who(address: SocketAddr) -> Result<Identity, String> {
    read(&http::get(address, "/")?)
}

/// Asks for an answer that takes two seconds.
pub fn who_slowly(address: SocketAddr) -> Result<Identity, String> {
    read(&http::get(address, "/slow")?)
}

/// Reads such an answer.
pub fn read(body: &str) -> Result<Identity, String> {
    let mut words = body.split_whitespace();
    let mut identity = || {
        Some(Identity {
            task: words.next()?.to_owned(),
            pid: words.next()?.parse().ok()?,
            greeting: words.next().unwrap_or_default().to_owned(),
        })
    };
    identity().ok_or_else(|| format!("the answer is {body:?}"))
}

/// Asks until so many different instances have answered, each without fail.
#[track_caller]
pub fn who_all(address: SocketAddr, count: usize) -> BTreeSet<Identity> {
    let mut seen = BTreeSet::new();
    eventually("every instance is reached", || {
        seen.insert(who(address)?);
        if seen.len() == count { Ok(()) } else { Err(format!("{} of {count} answered", seen.len())) }
    });
    seen
}

/// Waits until so many instances of an app run and each serves: its process may still be starting although the task
/// runs, and one that could not get its port is replaced.
#[track_caller]
pub fn wait_until_serving(cluster: &Cluster, app: &str, count: usize) {
    eventually("every instance serves", || {
        let tasks = cluster.tasks(app);
        equal(&tasks.len(), &count)?;
        for task in tasks {
            let port = task["ports"][0].as_u64().and_then(|port| u16::try_from(port).ok());
            who(SocketAddr::from(([127, 0, 0, 1], port.expect("a port"))))?;
        }
        Ok(())
    });
}
