//! Hooks in the kernel, in a network namespace and a cgroup of the test's own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesonet_lb_dataplane::{EbpfSettings, cleanup};
use mesonet_model::EndpointState;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Builder, Runtime};

use crate::fixture::{
    Node, PATIENCE, ask, connect, dead_address, echoes, eventually, read_name, serve_name, task,
};

/// The hooks are of one cgroup, so that tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// A place of its own for programs: a cgroup with this process in it, a BPF file system, a network namespace.
struct Site {
    name: String,
    cgroup: PathBuf,
    home: PathBuf,
    bpffs: PathBuf,
    /// The network namespace that the test came from.
    origin: fs::File,
    runtime: Option<Runtime>,
    _turn: MutexGuard<'static, ()>,
}

impl Site {
    fn new(test: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("mesonet-{}-{test}", std::process::id());
        let root = cgroup2_mount();
        let home = root.join(own_cgroup().trim_start_matches('/'));
        let cgroup = root.join(&name);
        fs::create_dir(&cgroup).expect("a cgroup");
        let bpffs = std::env::temp_dir().join(&name);
        fs::create_dir(&bpffs).expect("a directory");
        run("mount", &["-t", "bpf", "bpf", text(&bpffs)]);
        run("ip", &["netns", "add", &name]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        let origin = fs::File::open("/proc/thread-self/ns/net").expect("the own namespace");
        let mut site = Self { name, cgroup, home, bpffs, origin, runtime: None, _turn: turn };
        site.enter(&site.cgroup);
        let namespace = format!("/run/netns/{}", site.name);
        join(&namespace);
        let mut runtime = Builder::new_multi_thread();
        runtime.worker_threads(1).enable_all().on_thread_start(move || join(&namespace));
        site.runtime = Some(runtime.build().expect("a runtime"));
        site
    }

    fn enter(&self, cgroup: &Path) {
        fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).expect("enter the cgroup");
    }

    fn settings(&self) -> EbpfSettings {
        EbpfSettings { cgroup: self.cgroup.clone(), bpffs: self.bpffs.clone() }
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("running").block_on(future)
    }

    fn node(&self) -> Node {
        self.run(async { Node::ebpf(&self.settings()) })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        drop(self.runtime.take());
        move_into_link_name_space(self.origin.as_fd(), Some(LinkNameSpaceType::Network)).expect("back");
        let _ = cleanup(&self.bpffs);
        self.enter(&self.home);
        run("umount", &[text(&self.bpffs)]);
        run("ip", &["netns", "delete", &self.name]);
        let _ = fs::remove_dir(&self.bpffs);
        eventually("the cgroup is empty", || fs::remove_dir(&self.cgroup).is_ok());
    }
}

fn join(namespace: &str) {
    let file = fs::File::open(namespace).expect("the namespace");
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("join the namespace");
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn cgroup2_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    mount.expect("cgroup2 is mounted")
}

fn own_cgroup() -> String {
    let groups = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    groups.lines().find_map(|line| line.strip_prefix("0::")).expect("a version 2 cgroup").to_owned()
}

fn vip(number: u8) -> SocketAddr {
    ([11, 0, 0, number], 80).into()
}

#[test]
#[ignore = "needs root"]
fn connections_go_to_ready_endpoints_and_see_the_virtual_address() {
    let site = Site::new("connect");
    let mut node = site.node();
    for vip in [vip(1), "[fd01:c::1]:80".parse().expect("address")] {
        let service = node.put_service("tcp", "web", vip);
        node.put_endpoint(&service, "a", serve_name("a"), EndpointState::Ready);
        node.put_endpoint(&service, "b", serve_name("b"), EndpointState::Ready);
        node.put_endpoint(&service, "c", serve_name("c"), EndpointState::Draining);
        assert_eq!(site.run(node.apply()), [].into());
        let names: Vec<char> = (0..200).map(|_| ask(vip).expect("an answer")).collect();
        for (name, expected) in [('a', 60..140), ('b', 60..140), ('c', 0..1)] {
            let count = names.iter().filter(|each| **each == name).count();
            assert!(expected.contains(&count), "{name}: {count} of 200");
        }
        let stream = connect(vip);
        assert_eq!(stream.peer_addr().expect("a peer"), vip);
        node.view.services.remove(&service);
        for (task, _) in [("a", ()), ("b", ()), ("c", ())] {
            let keys: Vec<_> =
                node.view.endpoints.keys().filter(|key| key.task.task.as_str() == task).cloned().collect();
            keys.iter().for_each(|key| drop(node.view.endpoints.remove(key)));
        }
        site.run(node.apply());
    }
}

#[test]
#[ignore = "needs root"]
fn a_service_without_endpoints_refuses_at_once() {
    let site = Site::new("refuse");
    let mut node = site.node();
    node.put_service("tcp", "web", vip(1));
    site.run(node.apply());
    let error = std::net::TcpStream::connect(vip(1)).expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
#[ignore = "needs root"]
fn datagrams_of_a_socket_stay_with_their_endpoint() {
    let site = Site::new("datagrams");
    let mut node = site.node();
    let service = node.put_service("udp", "echo", vip(1));
    let servers: Vec<UdpSocket> = (0..4).map(|_| UdpSocket::bind("127.0.0.1:0").expect("bind")).collect();
    for (number, server) in servers.iter().enumerate() {
        let address = server.local_addr().expect("bound");
        node.put_endpoint(&service, &format!("t{number}"), address, EndpointState::Ready);
        let server = server.try_clone().expect("a second descriptor");
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = server.recv_from(&mut buffer) {
                if server.send_to(&[number as u8], client).is_err() {
                    return;
                }
            }
        });
    }
    site.run(node.apply());
    let mut seen = std::collections::BTreeSet::new();
    for is_connected in [false, true] {
        for _ in 0..40 {
            let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
            client.set_read_timeout(Some(PATIENCE)).expect("valid");
            if is_connected {
                client.connect(vip(1)).expect("connect");
            }
            let answers: Vec<u8> = (0..5).map(|_| datagram(&client, is_connected)).collect();
            assert!(answers.iter().all(|each| *each == answers[0]), "{answers:?}");
            seen.insert(answers[0]);
        }
    }
    assert_eq!(seen.len(), 4);
}

/// Sends one datagram and returns who answers. The answer comes from the virtual address.
fn datagram(client: &UdpSocket, is_connected: bool) -> u8 {
    let mut buffer = [0; 64];
    if is_connected {
        client.send(b"?").expect("sent");
        assert_eq!(client.peer_addr().expect("connected"), vip(1));
    } else {
        client.send_to(b"?", vip(1)).expect("sent");
    }
    let (_, from) = client.recv_from(&mut buffer).expect("an answer");
    assert_eq!(from, vip(1));
    buffer[0]
}

#[test]
#[ignore = "needs root"]
fn connections_to_a_dead_endpoint_end_and_others_stay() {
    let site = Site::new("dead");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let (a, b) = (serve_name("a"), serve_name("b"));
    node.put_endpoint(&service, "a", a, EndpointState::Ready);
    node.put_endpoint(&service, "b", b, EndpointState::Ready);
    site.run(node.apply());
    let mut streams: Vec<_> = (0..20).map(|_| connect(vip(1))).collect();
    let mut names: Vec<char> = streams.iter_mut().map(|stream| read_name(stream).expect("a name")).collect();
    // Somebody who reached the endpoint by its own address is not ours to end.
    let mut direct = connect(a);
    assert_eq!(read_name(&mut direct).expect("a name"), 'a');
    node.remove_endpoint(&service, "a", a);
    site.run(node.apply());
    for (stream, name) in streams.iter_mut().zip(names.drain(..)) {
        match name {
            'a' => {
                let ended = stream.write_all(b"!").and_then(|()| stream.read_exact(&mut [0]));
                assert!(ended.is_err(), "the connection to a goes on");
            }
            _ => assert!(echoes(stream), "the connection to b ends"),
        }
    }
    assert!(echoes(&mut direct));
}

#[test]
#[ignore = "needs root"]
fn a_draining_endpoint_is_busy_until_its_connections_end() {
    let site = Site::new("drain");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let a = serve_name("a");
    node.put_endpoint(&service, "a", a, EndpointState::Ready);
    site.run(node.apply());
    let mut stream = connect(vip(1));
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    node.put_endpoint(&service, "a", a, EndpointState::Draining);
    let mut busy = node.balancer.busy();
    site.run(node.apply());
    assert!(busy.borrow_and_update().contains(&task("a")));
    assert!(echoes(&mut stream));
    // Nobody is ready.
    assert!(std::net::TcpStream::connect(vip(1)).is_err());
    drop(stream);
    let idle = async { busy.wait_for(|busy| busy.is_empty()).await.map(drop) };
    let waited = site.run(async { tokio::time::timeout(PATIENCE, idle).await });
    waited.expect("the endpoint is free in time").expect("the balancer runs");
}

#[test]
#[ignore = "needs root"]
fn another_process_takes_over_without_a_gap() {
    let site = Site::new("survive");
    let mut node = site.node();
    let first = node.put_service("tcp", "first", vip(1));
    let second = node.put_service("tcp", "second", vip(2));
    node.put_endpoint(&first, "a", serve_name("a"), EndpointState::Ready);
    node.put_endpoint(&second, "b", serve_name("b"), EndpointState::Ready);
    site.run(node.apply());
    let mut stream = connect(vip(1));
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    let mut view = node.view.clone();
    drop(node);
    // Nobody runs: the kernel goes on.
    assert_eq!((ask(vip(1)).expect("a"), ask(vip(2)).expect("b")), ('a', 'b'));
    let mut node = site.node();
    assert_eq!(ask(vip(1)).expect("a"), 'a');
    // The next process finds one service less in its first view.
    view.services.remove(&second);
    let gone: Vec<_> = view.endpoints.keys().filter(|key| key.service == second).cloned().collect();
    gone.iter().for_each(|key| drop(view.endpoints.remove(key)));
    node.view = view;
    site.run(node.apply());
    assert_eq!(ask(vip(1)).expect("a"), 'a');
    assert!(echoes(&mut stream));
    assert!(std::net::TcpStream::connect_timeout(&vip(2), Duration::from_millis(200)).is_err());
    cleanup(&site.bpffs).expect("removed");
    assert!(std::net::TcpStream::connect_timeout(&vip(1), Duration::from_millis(200)).is_err());
    assert!(echoes(&mut stream));
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_that_does_not_listen_is_the_clients_error() {
    let site = Site::new("deaf");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    node.put_endpoint(&service, "a", dead_address(), EndpointState::Ready);
    site.run(node.apply());
    let error = std::net::TcpStream::connect(vip(1)).expect_err("nobody listens");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}
