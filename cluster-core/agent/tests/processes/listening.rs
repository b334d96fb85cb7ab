//! When tasks listen on the ports that they publish.

use std::net::{Ipv4Addr, TcpListener};

use mesonet_model::{Discovery, DiscoveryPort, TaskSpec, TaskState};

use crate::Case;
use crate::cases::directory;
use crate::networks::{in_namespace, in_networks};
use crate::node::{self, Node, shell, wait_for};

/// All of them.
pub const ALL: &[Case] = &[
    ("it_is_told_when_a_task_listens", None, it_is_told_when_a_task_listens),
    ("a_task_listens_in_its_own_network", Some("needs root"), || {
        in_namespace(a_task_listens_in_its_own_network)
    }),
];

fn publish(spec: &mut TaskSpec, number: u16) {
    let name = Some("http".to_owned());
    let port = DiscoveryPort { number, name, protocol: "tcp".to_owned(), ..DiscoveryPort::default() };
    spec.discovery = Some(Discovery { ports: vec![port], ..Discovery::default() });
}

fn it_is_told_when_a_task_listens() {
    // An address that nobody else uses, so that nobody takes the port meanwhile.
    let address = Ipv4Addr::new(127, 90, 13, 1);
    let free = TcpListener::bind((address, 0)).expect("listens");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let directory = directory();
    let config = || mesonet_agent::Config { address: address.into(), ..node::config(directory.path()) };
    let mut node = Node::with(config());
    let mut spec = shell("server", "exec sleep 1000");
    publish(&mut spec, port);
    node.launch(&spec);
    assert_eq!(node.until(&spec, TaskState::Running).listening, Some(false));
    node.stop();
    // The next agent goes on to look.
    let mut node = Node::with(config());
    assert_eq!(node.registered[0].status.listening, Some(false));
    let _listener = wait_for("the port", || TcpListener::bind((address, port)).ok());
    loop {
        let told = node.next_status("that it listens");
        node.acknowledge(&told);
        assert_eq!(told.state, TaskState::Running);
        match told.listening {
            // Its acknowledgement had not reached the agent before.
            Some(false) => {}
            Some(true) => break,
            None => panic!("it was not waited for: {told:?}"),
        }
    }
    node.kill(&spec);
    while !node.next_status("the end").state.is_terminal() {}
}

fn a_task_listens_in_its_own_network() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let mut spec = in_networks("greeter", &["greet", "8080"], &[None]);
    publish(&mut spec, 8080);
    node.launch(&spec);
    assert_eq!(node.until(&spec, TaskState::Running).listening, Some(false));
    assert_eq!(node.next_status("that it listens").listening, Some(true));
    node.kill(&spec);
    while !node.next_status("the end").state.is_terminal() {}
}
