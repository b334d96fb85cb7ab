//! Hooks for the processes of the cgroup, and the proxy for everybody else.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;

use mesonet_model::EndpointState::{Draining, Ready};

use super::{Site, vip};
use crate::fixture::{Node, ask, connect, eventually, read_name, serve, serve_name, task};

/// A server that says which port its client has.
fn serve_ports() -> SocketAddr {
    serve(|mut stream| {
        let port = stream.peer_addr().expect("connected").port();
        // The client may have gone.
        let _gone = stream.write_all(&port.to_be_bytes());
    })
}

/// Whether the server behind an address sees the client's own port.
fn is_seen(address: SocketAddr) -> bool {
    let mut stream = connect(address);
    let mut port = [0; 2];
    stream.read_exact(&mut port).expect("an answer");
    stream.local_addr().expect("connected").port() == u16::from_be_bytes(port)
}

#[test]
#[ignore = "needs root"]
fn the_proxy_serves_those_whom_the_hooks_do_not_see() {
    let site = Site::new("mixed");
    let mut node = site.run(async { Node::ebpf(&site.settings()).with_proxy_beside() });
    let local: SocketAddr = "127.11.0.9:80".parse().expect("address");
    let web = node.put_service("tcp", "web", local);
    node.put_endpoint(&web, "a", serve_ports(), Ready);
    let away = node.put_service("tcp", "away", vip(1));
    node.put_endpoint(&away, "b", serve_name("b"), Ready);
    assert_eq!(site.run(node.apply()), [].into(), "an address that is not local is no failure");
    assert_eq!(
        (node.metric("mesonet_lb_datapath", "ebpf"), node.metric("mesonet_lb_datapath", "proxy")),
        (1.0, 1.0)
    );
    assert_eq!(node.metric("mesonet_lb_endpoints", "ready"), 2.0);

    assert!(is_seen(local), "a process of the cgroup connects to the endpoint itself");
    assert_eq!(ask(vip(1)).expect("an answer"), 'b');
    site.enter(&site.home);
    assert!(!is_seen(local), "everybody else comes by the proxy");
    site.enter(&site.cgroup);
}

#[test]
#[ignore = "needs root"]
fn connections_of_the_proxy_keep_a_draining_task_busy() {
    let site = Site::new("mixedbusy");
    let mut node = site.run(async { Node::ebpf(&site.settings()).with_proxy_beside() });
    let local: SocketAddr = "127.11.0.9:80".parse().expect("address");
    let web = node.put_service("tcp", "web", local);
    let endpoint = serve_name("a");
    node.put_endpoint(&web, "a", endpoint, Ready);
    site.run(node.apply());
    let busy = site.run(async { node.balancer.busy() });
    site.enter(&site.home);
    let mut client = connect(local);
    assert_eq!(read_name(&mut client).expect("an answer"), 'a');
    site.enter(&site.cgroup);
    node.put_endpoint(&web, "a", endpoint, Draining);
    site.run(node.apply());
    eventually("the task is busy", || busy.borrow().contains(&task("a")));
    drop(client);
    eventually("the task is idle", || busy.borrow().is_empty());
}
