//! Tasks with addresses of their own.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::Duration;

use mesonet_agent::{AttachmentKey, AttachmentRequest, Attachments};
use mesonet_model::{
    AgentCommand, Attachment, PortForward, Protocol, StatusReason, TaskNetworking, TaskSpec, TaskState,
};
use mesonet_netlink::{Netlink, set_switch, switch};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::Case;
use crate::cases::directory;
use crate::node::{self, Node, shell, wait_for};

/// What needs rights, and which.
pub const ALL: &[Case] = &[
    ("tasks_reach_each_other_by_addresses_of_their_own", Some("needs root"), || {
        in_namespace(tasks_reach_each_other_by_addresses_of_their_own)
    }),
    ("ports_of_the_node_lead_to_the_task_and_are_known_to_be_taken", Some("needs root"), || {
        in_namespace(ports_of_the_node_lead_to_the_task_and_are_known_to_be_taken)
    }),
    ("addresses_outlive_the_agent_and_come_back_with_the_end", Some("needs root"), || {
        in_namespace(addresses_outlive_the_agent_and_come_back_with_the_end)
    }),
    ("a_bridge_that_somebody_removes_is_put_back", Some("needs root"), || {
        in_namespace(a_bridge_that_somebody_removes_is_put_back)
    }),
    ("an_interface_that_somebody_removes_or_turns_off_is_put_back", Some("needs root"), || {
        in_namespace(an_interface_that_somebody_removes_or_turns_off_is_put_back)
    }),
    ("a_task_keeps_its_name_server_when_the_host_changes_its_own", Some("needs root"), || {
        in_namespace(a_task_keeps_its_name_server_when_the_host_changes_its_own)
    }),
    ("a_network_on_an_address_of_the_host_is_refused", Some("needs root"), || {
        in_namespace(a_network_on_an_address_of_the_host_is_refused)
    }),
    ("tasks_and_containers_of_others_never_have_the_same_address", Some("needs root"), || {
        in_namespace(tasks_and_containers_of_others_never_have_the_same_address)
    }),
];

/// Runs a test on a thread with a network of its own. What the thread starts is in it, too.
pub fn in_namespace(test: fn()) {
    let run = move || {
        // SAFETY: what is unshared is the network namespace, not the table of descriptors.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.expect("unshares");
        let mut own = Netlink::open().expect("netlink");
        let lo = own.link("lo").expect("asks").expect("every namespace has one");
        own.set_up(&lo).expect("turns on");
        test();
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// What the program of a task does: it says its own address to everybody, by TCP and by UDP.
pub fn greet(port: u16) -> ExitCode {
    let listener = TcpListener::bind(("::", port)).expect("listens");
    let socket = UdpSocket::bind(("::", port)).expect("binds");
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let own = stream.local_addr().expect("connected").ip().to_canonical();
        let _ = stream.write_all(own.to_string().as_bytes());
    }
    ExitCode::SUCCESS
}

/// What another task does: it asks the first one.
pub fn ask(address: &str, port: u16) -> ExitCode {
    println!("{}", greeting(address.parse().expect("an address"), port));
    ExitCode::SUCCESS
}

/// Waits until somebody answers there.
fn greeting(address: IpAddr, port: u16) -> String {
    wait_for("an answer", || {
        let mut text = String::new();
        let read =
            TcpStream::connect((address, port)).and_then(|mut stream| stream.read_to_string(&mut text));
        read.ok().filter(|length| *length > 0).map(|_| text)
    })
}

/// A task that runs this program in networks.
pub fn in_networks(task: &str, arguments: &[&str], networks: &[Option<(&str, &[&str])>]) -> TaskSpec {
    let program = std::env::current_exe().expect("path of this program");
    let mut spec = shell(task, "");
    spec.command.shell = None;
    spec.command.arguments = vec![program.to_string_lossy().into_owned()];
    spec.command.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let attachment = |network: &Option<(&str, &[&str])>| match network {
        None => Attachment::default(),
        Some((name, subnets)) => Attachment {
            network: Some(name.parse().expect("name")),
            subnets: subnets.iter().map(|subnet| subnet.parse().expect("range")).collect(),
        },
    };
    let attachments = networks.iter().map(attachment).collect();
    spec.networking = Some(TaskNetworking { attachments, mappings: Vec::new() });
    spec
}

/// A network with addresses of both versions of IP.
pub const DUAL: Option<(&str, &[&str])> = Some(("dual", &["9.0.7.0/24", "fd01:b:0:0:7::/80"]));

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(IpAddr::to_string).collect()
}

fn tasks_reach_each_other_by_addresses_of_their_own() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let greeter = in_networks("greeter", &["greet", "8080"], &[DUAL]);
    node.launch(&greeter);
    let running = node.until(&greeter, TaskState::Running);
    assert_eq!(texts(&running.addresses), ["9.0.7.2", "fd01:b::7:0:0:2"]);
    assert_eq!(greeting([9, 0, 7, 2].into(), 8080), "9.0.7.2", "the node reaches the task");
    for (task, address) in [("v4", "9.0.7.2"), ("v6", "fd01:b::7:0:0:2")] {
        let asker = in_networks(task, &["ask", address, "8080"], &[DUAL]);
        let end = node.run(&asker).pop().expect("it ends");
        assert_eq!(end.state, TaskState::Finished, "{end:?}");
        assert_eq!(node.stdout(&asker).trim(), address);
    }
    let mut reader = in_networks("reader", &[], &[DUAL]);
    reader.command = shell("reader", "cat /etc/resolv.conf; ls /sys/class/net 2>&1 >/dev/null").command;
    node.run(&reader);
    assert_eq!(node.stdout(&reader), "nameserver 198.51.100.1\n");
    node.kill(&greeter);
    node.until(&greeter, TaskState::Killed);
}

fn ports_of_the_node_lead_to_the_task_and_are_known_to_be_taken() {
    let directory = directory();
    let (config, registry) = node::counted(directory.path());
    let mut node = Node::with(config);
    let forward = |protocol| PortForward { host_port: 31_007, container_port: 8080, protocol };
    let mut greeter = in_networks("greeter", &["greet", "8080"], &[None]);
    let networking = greeter.networking.as_mut().expect("its own interfaces");
    networking.mappings = vec![forward(Protocol::Tcp), forward(Protocol::Udp)];
    node.launch(&greeter);
    let running = node.until(&greeter, TaskState::Running);
    assert_eq!(texts(&running.addresses), ["172.31.254.2"]);
    let answers = || {
        assert_eq!(greeting([127, 0, 0, 1].into(), 31_007), "172.31.254.2");
        let client = UdpSocket::bind("127.0.0.1:0").expect("binds");
        client.set_read_timeout(Some(Duration::from_millis(200))).expect("sets");
        wait_for("an echo", || {
            client.send_to(b"hello", "127.0.0.1:31007").ok()?;
            let mut buffer = [0; 16];
            client.recv(&mut buffer).ok().filter(|length| &buffer[..*length] == b"hello")
        });
    };
    answers();
    // Who copies is killed alone, twice.
    for times in 1..=2 {
        let copier = wait_for("who copies", || forwarder(node.supervisor(&greeter)));
        rustix::process::kill_process(copier, rustix::process::Signal::KILL).expect("kills");
        wait_for("it is told", || {
            let restored = node::shown(&registry, "mesonet_agent_network_restored_total", &[]);
            (restored >= f64::from(times)).then_some(())
        });
        answers();
    }
    let mut second = in_networks("second", &["greet", "8080"], &[None]);
    second.networking = greeter.networking.clone();
    let end = node.run(&second).pop().expect("it ends");
    assert_eq!((end.state, end.reason), (TaskState::Failed, Some(StatusReason::ReasonContainerLaunchFailed)));
    assert!(end.message.starts_with("cannot listen on tcp port 127.0.0.1:31007"), "{}", end.message);
    node.kill(&greeter);
    node.until(&greeter, TaskState::Killed);
    wait_for("the port to be free", || TcpListener::bind("127.0.0.1:31007").ok());
}

/// The child of a supervisor that runs the supervisor's own program.
fn forwarder(supervisor: i32) -> Option<rustix::process::Pid> {
    let read = |path: String| std::fs::read_to_string(path).ok();
    let own = read(format!("/proc/{supervisor}/cmdline"))?;
    let children = read(format!("/proc/{supervisor}/task/{supervisor}/children"))?;
    let mut children = children.split_whitespace();
    let found = children.find(|child| read(format!("/proc/{child}/cmdline")).is_some_and(|line| line == own));
    rustix::process::Pid::from_raw(found?.parse().ok()?)
}

fn addresses_outlive_the_agent_and_come_back_with_the_end() {
    let small: Option<(&str, &[&str])> = Some(("small", &["9.0.8.0/30"]));
    let directory = directory();
    let mut node = Node::start(directory.path());
    let first = in_networks("first", &["greet", "8080"], &[small]);
    node.launch(&first);
    node.until(&first, TaskState::Running);
    let mut connection = wait_for("a connection", || TcpStream::connect("9.0.8.2:8080").ok());
    node.stop();
    let mut node = Node::start(directory.path());
    assert_eq!(texts(&node.registered[0].status.addresses), ["9.0.8.2"]);
    let mut text = String::new();
    connection.read_to_string(&mut text).expect("the connection has not broken");
    assert_eq!(greeting([9, 0, 8, 2].into(), 8080), "9.0.8.2");
    let second = in_networks("second", &["greet", "8080"], &[small]);
    let refused = node.run(&second).pop().expect("it ends");
    assert_eq!(refused.message, "every address of 9.0.8.0/30 is taken");
    node.send(AgentCommand::Kill { task: first.key.clone(), grace: Some(Duration::ZERO) });
    node.until(&first, TaskState::Killed);
    let bridge = |name: &str| Netlink::open().and_then(|mut own| own.link(name)).expect("asks");
    wait_for("the bridge to go", || bridge("m-small").is_none().then_some(()));
    let third = in_networks("third", &["greet", "8080"], &[small]);
    node.launch(&third);
    let running = node.until(&third, TaskState::Running);
    assert_eq!(texts(&running.addresses), ["9.0.8.2"]);
    node.kill(&third);
    node.until(&third, TaskState::Killed);
}

fn a_bridge_that_somebody_removes_is_put_back() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let greeter = in_networks("greeter", &["greet", "8080"], &[DUAL]);
    node.launch(&greeter);
    node.until(&greeter, TaskState::Running);
    assert_eq!(greeting([9, 0, 7, 2].into(), 8080), "9.0.7.2");
    Netlink::open().expect("netlink").remove_link("m-dual").expect("removes");
    assert_eq!(greeting([9, 0, 7, 2].into(), 8080), "9.0.7.2", "it is reached again");
    assert_eq!(greeting("fd01:b::7:0:0:2".parse().expect("address"), 8080), "fd01:b::7:0:0:2");
    let forwarding = "ipv4/conf/m-dual/forwarding";
    set_switch(forwarding, "0").expect("sets");
    wait_for("it forwards again", || (switch(forwarding)? == "1").then_some(()));
    node.kill(&greeter);
    node.until(&greeter, TaskState::Killed);
    let bridge = || Netlink::open().expect("netlink").link("m-dual").expect("asks");
    wait_for("the bridge goes with the last task", || bridge().is_none().then_some(()));
}

/// The address on the wire of a task's first interface.
fn hardware_address(node: &Node, task: &TaskSpec) -> [u8; 6] {
    let namespace = File::open(format!("/proc/{}/ns/net", node.supervisor(task))).expect("opens");
    let look = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("enters");
        let link = Netlink::open().expect("netlink").link("eth0").expect("asks").expect("it has one");
        link.hardware_address.expect("it is of Ethernet")
    };
    std::thread::scope(|scope| scope.spawn(look).join()).expect("looks")
}

/// Waits until the task answers somebody whom only its default route leads to.
fn echo_by_default_route(from: &str, to: &str) {
    let client = UdpSocket::bind((from, 0)).expect("binds");
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("sets");
    wait_for("an echo", || {
        client.send_to(b"hello", (to, 8080)).ok()?;
        let mut buffer = [0; 16];
        client.recv(&mut buffer).ok().filter(|length| &buffer[..*length] == b"hello")
    });
}

fn an_interface_that_somebody_removes_or_turns_off_is_put_back() {
    let mut host = Netlink::open().expect("netlink");
    let lo = host.link("lo").expect("asks").expect("there");
    host.add_address(&lo, [10, 99, 0, 1].into(), 32).expect("adds");
    let directory = directory();
    let (config, registry) = node::counted(directory.path());
    let mut node = Node::with(config);
    let greeter = in_networks("greeter", &["greet", "8080"], &[DUAL]);
    node.launch(&greeter);
    node.until(&greeter, TaskState::Running);
    echo_by_default_route("10.99.0.1", "9.0.7.2");
    let run = std::fs::read_link(node.sandbox(&greeter)).expect("the newest run");
    let run = run.to_string_lossy().replace('-', "");
    let port = format!("mn{}0", &run[..10]);
    let before = hardware_address(&node, &greeter);
    let ip = |arguments: &[&str]| {
        let done = Command::new("ip").args(arguments).status().expect("runs");
        assert!(done.success(), "ip {arguments:?}");
    };
    for damage in
        [&["link", "del", &port][..], &["link", "set", &port, "nomaster"], &["link", "set", &port, "down"]]
    {
        ip(damage);
        assert_eq!(greeting([9, 0, 7, 2].into(), 8080), "9.0.7.2", "after {damage:?}");
        assert_eq!(greeting("fd01:b::7:0:0:2".parse().expect("address"), 8080), "fd01:b::7:0:0:2");
        echo_by_default_route("10.99.0.1", "9.0.7.2");
    }
    assert_eq!(hardware_address(&node, &greeter), before, "its neighbours need not look for it");
    let count = |what: &str| node::shown(&registry, &format!("mesonet_agent_network_{what}"), &[]);
    wait_for("what was put back is counted", || (count("restored_total") >= 3.0).then_some(()));
    // A look that comes while something is taken away may not find all of it.
    wait_for("nothing is missing", || (count("missing") == 0.0).then_some(()));
    // Its end on the node is gone, but the other one is there, so that there can be no other pair.
    let rename = |from: &str, to: &str| {
        wait_for("nobody turns it on in between", || {
            let ip = |change: &[&str]| Command::new("ip").args(["link", "set", from]).args(change).output();
            let done = ip(&["down"]).and_then(|_| ip(&["name", to])).expect("runs");
            done.status.success().then_some(())
        });
    };
    rename(&port, "away");
    wait_for("what cannot be put back is shown", || (count("missing") == 1.0).then_some(()));
    rename("away", &port);
    wait_for("nothing is missing", || (count("missing") == 0.0).then_some(()));
    assert_eq!(greeting([9, 0, 7, 2].into(), 8080), "9.0.7.2", "after its return");
    node.kill(&greeter);
    node.until(&greeter, TaskState::Killed);
}

fn a_task_keeps_its_name_server_when_the_host_changes_its_own() {
    // The host's /etc as this thread and what it starts see it.
    let etc = directory();
    // SAFETY: what is unshared is the mount namespace, not the table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.expect("unshares");
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private");
    mount_bind(etc.path(), "/etc").expect("mounts");
    let place = Path::new("/etc/resolv.conf");
    let [new, elsewhere] = ["new", "elsewhere"].map(|name| Path::new("/etc").join(name));
    let host_asks = |expected: &str| {
        assert_eq!(std::fs::read_to_string(place).ok().as_deref(), Some(expected), "the host's own file");
    };
    std::fs::write(&elsewhere, "nameserver 192.0.2.1\n").expect("written");

    let directory = directory();
    let mut node = Node::start(directory.path());
    let mut sleeper = in_networks("sleeper", &[], &[DUAL]);
    sleeper.command = shell("sleeper", "exec sleep 1000").command;
    node.launch(&sleeper);
    node.until(&sleeper, TaskState::Running);
    let seen = format!("/proc/{}/root/etc/resolv.conf", node.supervisor(&sleeper));
    let task_asks_its_own = |after: &str| {
        wait_for(after, || {
            let text = std::fs::read_to_string(&seen).ok();
            text.filter(|text| text == "nameserver 198.51.100.1\n")
        });
    };
    std::fs::write(place, "nameserver 192.0.2.2\n").expect("written");
    host_asks("nameserver 192.0.2.2\n");
    task_asks_its_own("a file where there was none");
    for text in ["nameserver 192.0.2.3\n", "nameserver 192.0.2.4\n"] {
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, place).expect("replaced");
        host_asks(text);
        task_asks_its_own("another file");
    }
    std::os::unix::fs::symlink(&elsewhere, &new).expect("linked");
    std::fs::rename(&new, place).expect("replaced");
    host_asks("nameserver 192.0.2.1\n");
    task_asks_its_own("a link");
    std::fs::write(&new, "nameserver 192.0.2.5\n").expect("written");
    std::fs::rename(&new, &elsewhere).expect("replaced");
    host_asks("nameserver 192.0.2.5\n");
    task_asks_its_own("another target of the link");
    std::fs::write(&new, "nameserver 192.0.2.6\n").expect("written");
    std::fs::rename(&new, place).expect("replaced");
    host_asks("nameserver 192.0.2.6\n");
    task_asks_its_own("a file in the place of a link");
    node.kill(&sleeper);
    node.until(&sleeper, TaskState::Killed);
}

fn a_network_on_an_address_of_the_host_is_refused() {
    let mut own = Netlink::open().expect("netlink");
    let lo = own.link("lo").expect("asks").expect("there");
    own.add_address(&lo, [9, 0, 7, 200].into(), 32).expect("adds");
    let directory = directory();
    let mut node = Node::start(directory.path());
    let end = node.run(&in_networks("t", &["greet", "8080"], &[DUAL])).pop().expect("it ends");
    assert_eq!((end.state, end.reason), (TaskState::Failed, Some(StatusReason::ReasonContainerLaunchFailed)));
    let expected = "the addresses 9.0.7.0/24 of the task's network overlap the host's own address 9.0.7.200";
    assert_eq!(end.message, expected);
    let bystander = node.run(&shell("other", "echo fine")).pop().expect("it ends");
    assert_eq!(bystander.state, TaskState::Finished, "others are not affected");
}

/// Gives a test the file of another network namespace, which is there until the test returns.
fn with_namespace(test: impl FnOnce(PathBuf)) {
    let (path, paths) = mpsc::channel();
    let (end, ends) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: what is unshared is the network namespace, not the table of descriptors.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("unshares");
            let thread = rustix::thread::gettid().as_raw_nonzero();
            path.send(PathBuf::from(format!("/proc/self/task/{thread}/ns/net"))).expect("waits");
            // Ends when the test has dropped its end.
            let _ = ends.recv();
        });
        let _end = end;
        test(paths.recv().expect("a namespace"));
    });
}

fn tasks_and_containers_of_others_never_have_the_same_address() {
    let small: Option<(&str, &[&str])> = Some(("small", &["9.0.8.0/29"]));
    let directory = directory();
    let mut node = Node::start(directory.path());
    let first = in_networks("first", &["greet", "8080"], &[small]);
    node.launch(&first);
    assert_eq!(texts(&node.until(&first, TaskState::Running).addresses), ["9.0.8.2"]);
    with_namespace(|namespace| {
        let key = AttachmentKey { container: "other".to_owned(), interface: "eth0".to_owned() };
        let request = AttachmentRequest {
            key: key.clone(),
            label: "net".to_owned(),
            network: "small".parse().expect("name"),
            parts: vec!["9.0.8.0/29".parse().expect("range")],
            namespace: namespace.clone(),
        };
        let open = || Attachments::open(directory.path()).expect("opens");
        let attachment = open().attach(&request).expect("attaches");
        let addresses: Vec<IpAddr> = attachment.addresses().map(|each| each.address).collect();
        assert_eq!(texts(&addresses), ["9.0.8.3"]);
        let second = in_networks("second", &["greet", "8080"], &[small]);
        node.launch(&second);
        assert_eq!(texts(&node.until(&second, TaskState::Running).addresses), ["9.0.8.4"]);
        for task in [&first, &second] {
            node.kill(task);
            node.until(task, TaskState::Killed);
        }
        open().check(&key, &namespace).expect("the end of tasks has left the bridge");
    });
}
