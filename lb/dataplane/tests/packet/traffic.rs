//! Clients of another namespace reach servers of a third one through the node.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use mesonet_lb_dataplane::{PacketBalancer, PacketMode};
use mesonet_lb_plan::RouteState::{Draining, Ready};
use mesonet_model::TaskKey;
use tokio::sync::watch;

use crate::site::{Balancer, Side, Site, address, task};
use crate::tables::eventually;
use crate::upgrade::make_older;

/// Nothing here takes long; a test that waits for this has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Clients that ask until every endpoint has answered: enough that chance is no matter.
const CLIENTS_MAX: usize = 1_000;

/// A way to balance: where packets are met, and whether the node's address stands for the client's.
pub const WAYS: [(PacketMode, bool); 4] = [
    (PacketMode::Tc, false),
    (PacketMode::Tc, true),
    (PacketMode::XdpGeneric, false),
    (PacketMode::XdpGeneric, true),
];

/// Runs something in a namespace, on a thread of its own.
pub fn on<T: Send + 'static>(site: &Site, side: Side, what: impl FnOnce() -> T + Send + 'static) -> T {
    let entry = site.entry(side);
    thread::spawn(move || {
        entry.enter();
        what()
    })
    .join()
    .expect("no panic")
}

/// A server that tells each client a name and the client's address, and then echoes.
pub fn serve(site: &Site, at: &'static str, name: char) {
    let listener = on(site, Side::Server, move || TcpListener::bind(at).expect("bind"));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let peer = stream.peer_addr().expect("a peer").ip();
                let mut buffer = [0; 4096];
                let mut result = writeln!(stream, "{name} {peer}");
                while result.is_ok() {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => return,
                        Ok(count) => result = stream.write_all(&buffer[..count]),
                    }
                }
            });
        }
    });
}

/// The same for datagrams.
pub fn serve_datagrams(site: &Site, at: &'static str, name: char) {
    let socket = on(site, Side::Server, move || UdpSocket::bind(at).expect("bind"));
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            if socket.send_to(format!("{name} {}", client.ip()).as_bytes(), client).is_err() {
                return;
            }
        }
    });
}

/// A connection, and the first line that the server says.
pub struct Conversation {
    pub stream: TcpStream,
    pub line: String,
}

impl Conversation {
    pub fn begin(to: SocketAddr) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
            line.extend(byte);
        }
        Ok(Self { stream, line: String::from_utf8_lossy(&line).trim().to_owned() })
    }

    fn name(&self) -> char {
        self.line.chars().next().expect("a name")
    }

    /// Sends so many bytes and expects them back.
    pub fn echoes(&mut self, bytes: usize) -> bool {
        let sent: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
        let mut stream = self.stream.try_clone().expect("a second descriptor");
        let copy = sent.clone();
        let writing = thread::spawn(move || stream.write_all(&copy).is_ok());
        let mut received = vec![0; bytes];
        let is_read = self.stream.read_exact(&mut received).is_ok();
        writing.join().expect("no panic") && is_read && received == sent
    }
}

fn client_address(vip: &str, masquerade: bool) -> &'static str {
    match (vip.starts_with('['), masquerade) {
        (false, false) => "10.1.0.2",
        (false, true) => "10.2.0.1",
        (true, false) => "fd01::2",
        (true, true) => "fd02::1",
    }
}

#[test]
#[ignore = "needs root"]
fn connections_reach_endpoints_and_replies_come_from_the_virtual_address() {
    for (mode, masquerade) in WAYS {
        let site = Site::new();
        for (at, name) in [("10.2.0.2:8001", 'a'), ("10.2.0.2:8002", 'b')] {
            serve(&site, at, name);
        }
        for (at, name) in [("[fd02::2]:8001", 'a'), ("[fd02::2]:8002", 'b')] {
            serve(&site, at, name);
        }
        let mut settings = site.settings(&["clients", "servers"], mode);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        let ready = |address| (address, Ready);
        node.put("tcp/web@marathon:80", "11.0.0.1:80", &["10.2.0.2:8001", "10.2.0.2:8002"].map(ready));
        node.put("tcp/six@marathon:80", "[fd11::1]:80", &["[fd02::2]:8001", "[fd02::2]:8002"].map(ready));
        for vip in ["11.0.0.1:80", "[fd11::1]:80"] {
            let lines = on(&site, Side::Client, move || {
                let mut lines = BTreeSet::new();
                // Each connection has a port of its own, which leads to one of the endpoints.
                for _ in 0..CLIENTS_MAX {
                    let begun = Conversation::begin(address(vip));
                    let mut conversation =
                        begun.unwrap_or_else(|error| panic!("{mode:?} {masquerade} {vip}: {error}"));
                    assert_eq!(conversation.stream.peer_addr().expect("a peer"), address(vip));
                    assert!(conversation.echoes(64));
                    lines.insert(conversation.line);
                    if lines.len() == 2 {
                        break;
                    }
                }
                let mut conversation = Conversation::begin(address(vip)).expect("a connection");
                assert!(conversation.echoes(4 << 20), "bulk");
                lines
            });
            let client = client_address(vip, masquerade);
            let expected = ['a', 'b'].map(|name| format!("{name} {client}"));
            assert_eq!(lines, expected.into(), "{mode:?} {masquerade} {vip}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn datagrams_reach_endpoints_and_answers_come_from_the_virtual_address() {
    for (mode, masquerade) in WAYS {
        let site = Site::new();
        serve_datagrams(&site, "10.2.0.2:5301", 'a');
        serve_datagrams(&site, "10.2.0.2:5302", 'b');
        serve_datagrams(&site, "[fd02::2]:5301", 'a');
        let mut settings = site.settings(&["clients", "servers"], mode);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        node.put("udp/dns@marathon:53", "11.0.0.1:53", &[("10.2.0.2:5301", Ready), ("10.2.0.2:5302", Ready)]);
        node.put("udp/six@marathon:53", "[fd11::1]:53", &[("[fd02::2]:5301", Ready)]);
        for (vip, any, names) in
            [("11.0.0.1:53", "0.0.0.0:0", &['a', 'b'][..]), ("[fd11::1]:53", "[::]:0", &['a'])]
        {
            let answers = on(&site, Side::Client, move || {
                let mut answers = BTreeSet::new();
                for _ in 0..CLIENTS_MAX {
                    let socket = UdpSocket::bind(any).expect("bind");
                    socket.set_read_timeout(Some(PATIENCE)).expect("valid");
                    let mut of_socket: Vec<String> = Vec::new();
                    for _ in 0..3 {
                        socket.send_to(b"?", address(vip)).expect("sent");
                        let mut buffer = [0; 64];
                        let (length, from) = socket
                            .recv_from(&mut buffer)
                            .unwrap_or_else(|error| panic!("{mode:?} {masquerade} {vip}: {error}"));
                        assert_eq!(from, address(vip));
                        of_socket.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                    }
                    assert!(of_socket.iter().all(|each| *each == of_socket[0]), "{of_socket:?}");
                    answers.extend(of_socket);
                    if answers.len() == names.len() {
                        break;
                    }
                }
                answers
            });
            let client = client_address(vip, masquerade);
            let expected = names.iter().map(|name| format!("{name} {client}")).collect();
            assert_eq!(answers, expected, "{mode:?} {masquerade} {vip}");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_draining_endpoint_keeps_its_connections_and_a_dead_one_loses_them() {
    let site = Site::new();
    serve(&site, "10.2.0.2:8001", 'a');
    serve(&site, "10.2.0.2:8002", 'b');
    let mut node = Balancer::start(&site.settings(&["clients"], PacketMode::Tc));
    let (service, vip) = ("tcp/web@marathon:80", "11.0.0.1:80");
    node.put(service, vip, &[("10.2.0.2:8001", Ready)]);
    let mut old = on(&site, Side::Client, move || Conversation::begin(address(vip)).expect("a connection"));
    assert_eq!(old.name(), 'a');
    node.put(service, vip, &[("10.2.0.2:8001", Draining), ("10.2.0.2:8002", Ready)]);
    node.wait_for_start();
    let mut new = on(&site, Side::Client, move || {
        let mut all: Vec<_> =
            (0..20).map(|_| Conversation::begin(address(vip)).expect("a connection")).collect();
        assert!(all.iter().all(|each| each.name() == 'b'));
        all.swap_remove(0)
    });
    assert!(old.echoes(1000) && new.echoes(1000));
    node.put(service, vip, &[("10.2.0.2:8002", Ready)]);
    assert!(!old.echoes(1), "its endpoint is dead");
    assert!(new.echoes(1000));
    // Nobody answers at an address that is virtual no more.
    node.remove(service);
    let gone = on(&site, Side::Client, move || {
        TcpStream::connect_timeout(&address(vip), Duration::from_millis(300)).is_err()
    });
    assert!(gone);
}

#[test]
#[ignore = "needs root"]
fn a_draining_endpoint_is_busy_until_its_connections_end() {
    for (mode, masquerade) in WAYS {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        serve(&site, "10.2.0.2:8002", 'b');
        let mut settings = site.settings(&["clients", "servers"], mode);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        let (service, vip) = ("tcp/web@marathon:80", "11.0.0.1:80");
        node.put(service, vip, &[("10.2.0.2:8001", Ready)]);
        let begin =
            || on(&site, Side::Client, move || Conversation::begin(address(vip)).expect("a connection"));
        let [quiet, lively] = [begin(), begin()];
        node.put(service, vip, &[("10.2.0.2:8001", Draining), ("10.2.0.2:8002", Ready)]);
        let mut busy = node.balancer.busy();
        assert_eq!(*busy.borrow(), [task("10.2.0.2:8001")].into(), "until it is known better");
        node.wait_for_start();
        drop(lively);
        // Whether it is looked at before or after that, one connection is left.
        let mut new = begin();
        assert!(new.echoes(1000));
        assert_eq!(*busy.borrow(), [task("10.2.0.2:8001")].into());
        // Whoever takes over sees the connection, too.
        drop(node);
        let mut node = Balancer::start(&settings);
        node.put(service, vip, &[("10.2.0.2:8001", Draining), ("10.2.0.2:8002", Ready)]);
        busy = node.balancer.busy();
        assert_eq!(*busy.borrow(), [task("10.2.0.2:8001")].into());
        drop(quiet);
        wait_until_idle(busy);
        node.put(service, vip, &[("10.2.0.2:8002", Draining)]);
        assert_eq!(*node.balancer.busy().borrow(), [task("10.2.0.2:8002")].into());
        // A dead endpoint has nothing to wait for.
        node.put(service, vip, &[]);
        assert!(node.balancer.busy().borrow().is_empty());
    }
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_gets_no_connections_before_it_listens() {
    for (mode, masquerade) in WAYS {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let mut settings = site.settings(&["clients", "servers"], mode);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        let (service, vip) = ("tcp/web@marathon:80", "11.0.0.1:80");
        let all_go_to = |name: char| {
            on(&site, Side::Client, move || {
                for _ in 0..20 {
                    let begun = Conversation::begin(address(vip));
                    let found = begun.map(|conversation| conversation.name()).map_err(|error| error.kind());
                    assert_eq!(found, Ok(name), "{mode:?} {masquerade}");
                }
            });
        };
        node.put(service, vip, &[("10.2.0.2:8001", Ready)]);
        all_go_to('a');
        // The new one is refused to clients, and goes on to be if another process takes over.
        node.put(service, vip, &[("10.2.0.2:8001", Ready), ("10.2.0.2:8002", Ready)]);
        all_go_to('a');
        drop(node);
        let mut node = Balancer::start(&settings);
        node.put(service, vip, &[("10.2.0.2:8001", Ready), ("10.2.0.2:8002", Ready)]);
        all_go_to('a');
        // One that drains does the work as long as nobody else can, and is kept for it.
        let replaced = [("10.2.0.2:8001", Draining), ("10.2.0.2:8002", Ready)];
        node.put(service, vip, &replaced);
        all_go_to('a');
        assert_eq!(*node.balancer.busy().borrow(), [task("10.2.0.2:8001")].into());
        serve(&site, "10.2.0.2:8002", 'b');
        node.wait_for_start();
        all_go_to('b');
        wait_until_idle(node.balancer.busy());
    }
}

#[test]
#[ignore = "needs root"]
fn datagrams_keep_a_draining_endpoint_busy_for_a_while() {
    let site = Site::new();
    serve_datagrams(&site, "10.2.0.2:5301", 'a');
    let mut node = Balancer::start(&site.settings(&["clients"], PacketMode::Tc));
    let (service, vip) = ("udp/dns@marathon:53", "11.0.0.1:53");
    node.put(service, vip, &[("10.2.0.2:5301", Ready)]);
    let ask = move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.set_read_timeout(Some(PATIENCE)).expect("valid");
        socket.send_to(b"?", address(vip)).expect("sent");
        socket.recv_from(&mut [0; 64]).expect("an answer");
        socket
    };
    let socket = on(&site, Side::Client, ask);
    node.put(service, vip, &[("10.2.0.2:5301", Draining)]);
    let busy = node.balancer.busy();
    // A flow that goes on is one that is waited for, and one that does not is not.
    let wanted = [task("10.2.0.2:5301")].into();
    let deadline = Instant::now() + PATIENCE;
    while *busy.borrow() != wanted {
        assert!(Instant::now() < deadline, "it is busy in the end");
        socket.send_to(b"?", address(vip)).expect("sent");
        socket.recv_from(&mut [0; 64]).expect("an answer");
    }
    wait_until_idle(busy);
}

fn wait_until_idle(mut busy: watch::Receiver<BTreeSet<TaskKey>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let idle = async { tokio::time::timeout(PATIENCE, busy.wait_for(BTreeSet::is_empty)).await.map(drop) };
    runtime.block_on(idle).expect("it is idle in the end");
}

#[test]
#[ignore = "needs root"]
fn a_service_without_endpoints_refuses() {
    for mode in [PacketMode::Tc, PacketMode::XdpGeneric] {
        let site = Site::new();
        let mut node = Balancer::start(&site.settings(&["clients"], mode));
        for vip in ["11.0.0.1:80", "[fd11::1]:80"] {
            node.put("tcp/none@marathon:80", vip, &[]);
            node.put("udp/none@marathon:80", vip, &[]);
            on(&site, Side::Client, move || {
                let refused = TcpStream::connect_timeout(&address(vip), PATIENCE).map(drop);
                let kind = refused.map_err(|error| error.kind());
                assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{mode:?} {vip}");
                let any = if vip.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(any).expect("bind");
                socket.set_read_timeout(Some(PATIENCE)).expect("valid");
                socket.connect(address(vip)).expect("an address");
                socket.send(&[7; 1000]).expect("sent");
                let kind = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
                assert_eq!(kind, Err(ErrorKind::ConnectionRefused), "{mode:?} {vip}");
            });
        }
    }
}

#[test]
#[ignore = "needs root"]
fn another_process_takes_over_and_connections_go_on() {
    for mode in [PacketMode::Tc, PacketMode::XdpGeneric] {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let settings = site.settings(&["clients", "servers"], mode);
        let mut node = Balancer::start(&settings);
        let (service, vip) = ("tcp/web@marathon:80", "11.0.0.1:80");
        node.put(service, vip, &[("10.2.0.2:8001", Ready)]);
        node.put("tcp/other@marathon:80", "11.0.0.2:80", &[("10.2.0.2:8001", Ready)]);
        let begin = |vip: &'static str| on(&site, Side::Client, move || Conversation::begin(address(vip)));
        let mut old = begin(vip).expect("a connection");
        drop(node);
        // Nobody runs: the kernel goes on.
        assert!(old.echoes(1000));
        begin("11.0.0.2:80").expect("a connection");
        let mut node = Balancer::start(&settings);
        assert!(old.echoes(1000));
        begin("11.0.0.2:80").expect("what the process before has left is in effect");
        // The first view has one service less.
        node.put(service, vip, &[("10.2.0.2:8001", Ready)]);
        assert!(old.echoes(1000));
        let gone = on(&site, Side::Client, || {
            TcpStream::connect_timeout(&address("11.0.0.2:80"), Duration::from_millis(300)).is_err()
        });
        assert!(gone);
    }
}

/// Removes what an ended process has left. A program that another test starts meanwhile has that one's lock, too, until
/// it has begun.
#[track_caller]
pub fn remove_unused(bpffs: &Path) {
    eventually("nothing is left", || {
        PacketBalancer::remove_unused(bpffs).expect("it can be removed");
        std::fs::read_dir(bpffs.join("mesonet")).expect("a directory").count() == 0
    });
}

#[test]
#[ignore = "needs root"]
fn what_a_process_has_left_is_removed_when_nobody_uses_it() {
    for is_of_other_form in [false, true] {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let settings = site.settings(&["clients"], PacketMode::Tc);
        let mut node = Balancer::start(&settings);
        let vip = "11.0.0.1:80";
        node.put("tcp/web@marathon:80", vip, &[("10.2.0.2:8001", Ready)]);
        let is_reached = || {
            on(&site, Side::Client, move || {
                TcpStream::connect_timeout(&address(vip), Duration::from_millis(300)).is_ok()
            })
        };
        PacketBalancer::remove_unused(&settings.bpffs).expect("nothing fails");
        on(&site, Side::Client, move || Conversation::begin(address(vip)).expect("it is in use"));
        drop(node);
        if is_of_other_form {
            make_older(&site, false);
        }
        on(&site, Side::Client, move || Conversation::begin(address(vip)).expect("the kernel goes on"));
        remove_unused(&settings.bpffs);
        assert!(!is_reached());
        PacketBalancer::remove_unused(&settings.bpffs).expect("there is nothing");
    }
}
