//! Mesos masters as far as clients of their state see them: `/master/state` and the stream of operator events, with one
//! of them leading and the others redirecting to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

/// Some masters, each on a port of its own. They serve until the test's process ends.
pub struct FakeMesos {
    addresses: Vec<SocketAddr>,
    cluster: Arc<Mutex<Cluster>>,
}

#[derive(Default)]
struct Cluster {
    /// The number of the leading master.
    leader: Option<usize>,
    state: Value,
    subscribed: Value,
    streams: Vec<TcpStream>,
}

impl FakeMesos {
    /// Starts masters; the last one leads.
    pub fn start(count: usize) -> Self {
        let listeners: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let addresses: Vec<SocketAddr> =
            listeners.iter().map(|listener| listener.local_addr().expect("address")).collect();
        let cluster = Arc::new(Mutex::new(Cluster { leader: Some(count - 1), ..Cluster::default() }));
        for (number, listener) in listeners.into_iter().enumerate() {
            let (cluster, addresses) = (cluster.clone(), addresses.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (cluster, addresses) = (cluster.clone(), addresses.clone());
                    std::thread::spawn(move || serve(stream, number, &cluster, &addresses));
                }
            });
        }
        Self { addresses, cluster }
    }

    /// Where the masters are, as `--source` and `Masters` take them.
    pub fn masters(&self) -> Vec<String> {
        self.addresses.iter().map(SocketAddr::to_string).collect()
    }

    /// What `/master/state` says from now on of these tasks; the leader's process id is put in.
    pub fn set_state(&self, tasks: &[Value]) {
        let mut cluster = self.lock();
        let leader = cluster.leader.map(|leader| format!("master@{}", self.addresses[leader]));
        cluster.state = json!({
            "leader": leader,
            "slaves": [{ "id": "c-S0", "pid": "slave(1)@127.0.0.2:5051", "hostname": "127.0.0.2", "active": true }],
            "frameworks": [{ "id": "f", "name": "marathon", "pid": "scheduler-1@127.0.0.3:25501",
                             "hostname": "127.0.0.3", "active": true, "tasks": tasks }],
        });
    }

    /// What the first event of a stream says from now on.
    pub fn set_subscribed(&self, get_state: Value) {
        self.lock().subscribed = json!({
            "type": "SUBSCRIBED",
            "subscribed": { "get_state": get_state, "heartbeat_interval_seconds": 15.0 },
        });
    }

    /// What it says of its heartbeats, in seconds. It sends none by itself.
    pub fn set_heartbeat_interval(&self, seconds: f64) {
        self.lock().subscribed["subscribed"]["heartbeat_interval_seconds"] = json!(seconds);
    }

    /// Sends an event to all who have subscribed.
    pub fn send(&self, event: &Value) {
        let record = record(event);
        for stream in &mut self.lock().streams {
            stream.write_all(&record).expect("a subscriber");
        }
    }

    /// How many have subscribed to the leading master.
    pub fn subscribers(&self) -> usize {
        self.lock().streams.len()
    }

    /// Lets another master lead, or none. Streams end.
    pub fn lead(&self, leader: Option<usize>) {
        let mut cluster = self.lock();
        cluster.leader = leader;
        for stream in cluster.streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().expect("no other thread has failed")
    }
}

/// A running task in `/master/state`, without discovery information.
pub fn task(id: &str, name: &str, address: &str) -> Value {
    json!({
        "id": id, "name": name, "framework_id": "f", "slave_id": "c-S0", "state": "TASK_RUNNING",
        "resources": { "cpus": 0.1, "ports": "[31000-31000]" },
        "statuses": [{
            "state": "TASK_RUNNING", "timestamp": 1.5,
            "container_status": { "network_infos": [{ "ip_addresses": [{ "ip_address": address }] }] },
        }],
    })
}

/// The same in the v1 operator API.
pub fn v1_task(id: &str, name: &str, address: &str) -> Value {
    let mut task = task(id, name, address);
    let fields = task.as_object_mut().expect("object");
    fields.remove("id");
    fields.remove("slave_id");
    fields.remove("resources");
    fields.insert("task_id".to_owned(), json!({ "value": id }));
    fields.insert("agent_id".to_owned(), json!({ "value": "c-S0" }));
    fields.insert("framework_id".to_owned(), json!({ "value": "f" }));
    task
}

/// The agent of all tasks in the v1 operator API.
pub fn v1_agent() -> Value {
    json!({
        "agent_info": { "id": { "value": "c-S0" }, "hostname": "127.0.0.2" },
        "pid": "slave(1)@127.0.0.2:5051", "active": true,
    })
}

/// The framework of all tasks in the v1 operator API.
pub fn v1_frameworks() -> Value {
    json!({ "frameworks": [{
        "framework_info": { "id": { "value": "f" }, "name": "marathon", "hostname": "127.0.0.3" },
        "active": true,
    }]})
}

/// A chunk of HTTP with one record of RecordIO.
fn record(event: &Value) -> Vec<u8> {
    let text = event.to_string();
    let record = format!("{}\n{text}", text.len());
    format!("{:x}\r\n{record}\r\n", record.len()).into_bytes()
}

fn serve(mut stream: TcpStream, number: usize, cluster: &Mutex<Cluster>, addresses: &[SocketAddr]) {
    let Some(path) = request(&stream) else { return };
    let mut cluster = cluster.lock().expect("no other thread has failed");
    let answer = match cluster.leader {
        None => "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned(),
        Some(leader) if leader != number => format!(
            "HTTP/1.1 307 Temporary Redirect\r\nLocation: //{}{path}\r\nContent-Length: 0\r\n\r\n",
            addresses[leader]
        ),
        Some(_) if path == "/master/state" => {
            let body = cluster.state.to_string();
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
        Some(_) if path == "/api/v1" => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            let first = record(&cluster.subscribed);
            let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&first));
            if sent.is_ok() {
                cluster.streams.push(stream);
            }
            return;
        }
        Some(_) => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
    };
    // A client that has gone misses nothing.
    let _ = stream.write_all(answer.as_bytes());
}

/// Reads a request to its end; its path.
fn request(stream: &TcpStream) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok()?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    first.split(' ').nth(1).map(str::to_owned)
}
