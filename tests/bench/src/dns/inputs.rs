//! The same zone for all servers, and the queries.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

/// File names and what is in them.
pub const QUERY_FILES: [(&str, &str); 2] = [
    ("a", "addresses of apps"),
    (
        "mix",
        "60 % addresses, 25 % ports, 10 % IPv6 addresses that there are not, 5 % names that there are not",
    ),
];

/// Queries of a file; dnsperf begins anew at its end.
const QUERIES: usize = 100_000;

/// The name of the zone file.
pub const ZONE_FILE: &str = "mesos.zone";

/// Writes the zone file and the query files.
pub fn write(dir: &Path, apps: usize) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let mut zone = String::from(
        "$ORIGIN mesos.\n$TTL 60\n@ SOA ns1.mesos. root.ns1.mesos. 1 60 60 86400 60\n@ NS ns1.mesos.\nns1 A 10.0.0.1\n",
    );
    for app in 0..apps {
        let (address, port) = (address(app), port(app));
        writeln!(zone, "app{app}.marathon A {address}")?;
        writeln!(zone, "_app{app}._tcp.marathon SRV 0 1 {port} app{app}-x{app:05}-s1.marathon.mesos.")?;
        writeln!(zone, "app{app}-x{app:05}-s1.marathon A {address}")?;
    }
    fs::write(dir.join(ZONE_FILE), zone)?;
    let mut random = Random(1);
    let (mut plain, mut mixed) = (String::new(), String::new());
    for _ in 0..QUERIES {
        writeln!(plain, "app{}.marathon.mesos A", random.below(apps))?;
        let app = random.below(apps);
        match random.below(100) {
            0..60 => writeln!(mixed, "app{app}.marathon.mesos A")?,
            60..85 => writeln!(mixed, "_app{app}._tcp.marathon.mesos SRV")?,
            85..95 => writeln!(mixed, "app{app}.marathon.mesos AAAA")?,
            _ => writeln!(mixed, "nope{app}.marathon.mesos A")?,
        }
    }
    fs::write(dir.join(QUERY_FILES[0].0), plain)?;
    fs::write(dir.join(QUERY_FILES[1].0), mixed)?;
    Ok(())
}

/// What `/master/state` of a Mesos master says of these apps.
pub fn mesos_state(apps: usize, master: &str) -> Value {
    let task = |app: usize| {
        json!({
            "id": format!("app{app}.instance-{app}"), "name": format!("app{app}"), "framework_id": "f",
            "slave_id": "c-S1", "state": "TASK_RUNNING", "resources": { "ports": format!("[{0}-{0}]", port(app)) },
            "discovery": {
                "visibility": "FRAMEWORK", "name": format!("app{app}"),
                "ports": { "ports": [{ "number": port(app), "protocol": "tcp" }] },
            },
            "statuses": [{
                "state": "TASK_RUNNING", "timestamp": 1.5,
                "container_status": { "network_infos": [{ "ip_addresses": [{ "ip_address": address(app) }] }] },
            }],
        })
    };
    json!({
        "leader": format!("master@{master}"),
        "slaves": [{ "id": "c-S1", "pid": "slave(1)@10.0.0.2:5051", "hostname": "10.0.0.2", "active": true }],
        "frameworks": [{
            "id": "f", "name": "marathon", "pid": "scheduler-1@10.0.0.3:25501", "hostname": "10.0.0.3",
            "active": true, "tasks": (0..apps).map(task).collect::<Vec<Value>>(),
        }],
    })
}

fn address(app: usize) -> String {
    format!("9.{}.{}.{}", app >> 16 & 255, app >> 8 & 255, app & 255)
}

fn port(app: usize) -> usize {
    31_000 + app % 1_000
}

/// The same sequence in each run (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}
