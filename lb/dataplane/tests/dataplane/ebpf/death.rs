//! What happens to connections when their endpoints go.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::time::Instant;

use mesonet_model::EndpointState::{Draining, Ready};

use super::{Container, LOOKS, Site, vip};
use crate::fixture::{
    PATIENCE, connect, echoes, eventually, read_name, serve, serve_name, serve_name_at, task,
};

#[test]
#[ignore = "needs root"]
fn connections_to_a_dead_endpoint_end_and_others_stay() {
    let site = Site::new("dead");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let (a, b) = (serve_name("a"), serve_name("b"));
    node.put_endpoint(&service, "a", a, Ready);
    node.put_endpoint(&service, "b", b, Ready);
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
    node.put_endpoint(&service, "a", a, Ready);
    site.run(node.apply());
    let mut stream = connect(vip(1));
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    node.put_endpoint(&service, "a", a, Draining);
    let mut busy = node.balancer.busy();
    site.run(node.apply());
    assert!(busy.borrow_and_update().contains(&task("a")));
    assert!(echoes(&mut stream));
    // Nobody is ready.
    assert!(TcpStream::connect(vip(1)).is_err());
    drop(stream);
    let idle = async { busy.wait_for(|busy| busy.is_empty()).await.map(drop) };
    let waited = site.run(async { tokio::time::timeout(PATIENCE, idle).await });
    waited.expect("the endpoint is free in time").expect("the balancer runs");
}

#[test]
#[ignore = "needs root"]
fn a_draining_endpoint_of_datagrams_is_busy_until_it_has_had_none_for_a_while() {
    let site = Site::new("silence");
    let mut node = site.node();
    let service = node.put_service("udp", "sink", vip(1));
    let (a, b) = (sink(), sink());
    node.put_endpoint(&service, "a", a.local_addr().expect("bound"), Ready);
    site.run(node.apply());
    let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let send = || {
        client.send_to(b"!", vip(1)).expect("sent");
        a.recv(&mut [0]).expect("the flow stays");
    };
    send();
    node.put_endpoint(&service, "b", b.local_addr().expect("bound"), Ready);
    node.put_endpoint(&service, "a", a.local_addr().expect("bound"), Draining);
    site.run(node.apply());
    let busy = node.balancer.busy();
    let begun = Instant::now();
    while begun.elapsed() < 3 * LOOKS {
        send();
    }
    eventually("the task is busy", || {
        send();
        busy.borrow().contains(&task("a"))
    });
    eventually("the task is idle", || busy.borrow().is_empty());
}

/// Takes datagrams.
fn sink() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(PATIENCE)).expect("valid");
    socket
}

#[test]
#[ignore = "needs root"]
fn connections_that_a_draining_endpoint_has_ended_keep_it_busy_no_more() {
    let site = Site::new("ended");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    // Ends each connection when its client has said something.
    let a = serve(|mut stream| drop(stream.read(&mut [0])));
    node.put_endpoint(&service, "a", a, Ready);
    site.run(node.apply());
    let (mut ended, mut open) = (connect(vip(1)), connect(vip(1)));
    node.put_endpoint(&service, "a", a, Draining);
    site.run(node.apply());
    let busy = site.run(async { node.balancer.busy() });
    ended.write_all(b"!").expect("sent");
    assert_eq!(ended.read(&mut [0]).expect("the end"), 0);
    eventually("the other connection keeps the task busy", || busy.borrow().contains(&task("a")));
    open.write_all(b"!").expect("sent");
    assert_eq!(open.read(&mut [0]).expect("the end"), 0);
    // The clients keep theirs.
    eventually("the task is idle", || busy.borrow().is_empty());
    assert_eq!(ended.peer_addr().expect("connected"), vip(1));
}

#[test]
#[ignore = "needs root"]
fn connections_from_containers_end_with_their_endpoint() {
    let site = Site::new("everywhere");
    let container = site.container();
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let (a, b) = (serve_name_at(Container::HOST, "a"), serve_name_at(Container::HOST, "b"));
    node.put_endpoint(&service, "a", a, Ready);
    let sink = UdpSocket::bind((Container::HOST, 0)).expect("a free port");
    let sink = sink.local_addr().expect("bound");
    let datagrams = node.put_service("udp", "sink", vip(1));
    node.put_endpoint(&datagrams, "a", sink, Ready);
    site.run(node.apply());
    let (mut stream, mut direct, udp) = container.within(|| {
        let udp = UdpSocket::bind((Container::OWN, 0)).expect("a free port");
        udp.connect(vip(1)).expect("connect");
        (connect(vip(1)), connect(a), udp)
    });
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    assert_eq!(read_name(&mut direct).expect("a name"), 'a');
    udp.send(b"!").expect("sent");

    // Another one comes, and the first drains: nothing ends.
    node.put_endpoint(&service, "b", b, Ready);
    node.put_endpoint(&service, "a", a, Draining);
    site.run(node.apply());
    let busy = node.balancer.busy();
    eventually("the container's connection keeps the task busy", || busy.borrow().contains(&task("a")));
    assert!(echoes(&mut stream));

    node.remove_endpoint(&service, "a", a);
    node.remove_endpoint(&datagrams, "a", sink);
    site.run(node.apply());
    assert!(is_reset(&mut stream), "the connection to a goes on");
    udp.set_read_timeout(Some(PATIENCE)).expect("valid");
    let error = udp.recv(&mut [0]).expect_err("the flow goes on");
    assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
    assert!(echoes(&mut direct), "a connection that is not ours ends");
    let mut next = container.within(|| connect(vip(1)));
    assert_eq!(read_name(&mut next).expect("a name"), 'b');
    assert_eq!(node.metric("mesonet_lb_closed_namespaces", ""), 0.0);
}

#[test]
#[ignore = "needs root"]
fn namespaces_that_are_not_seen_are_told() {
    let site = Site::new("unseen");
    let container = site.container();
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let a = serve_name_at(Container::HOST, "a");
    node.put_endpoint(&service, "a", a, Ready);
    site.run(node.apply());
    let mut stream = container.within(|| connect(vip(1)));
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    // The namespace stays with its socket, and has neither a name nor a process.
    drop(container);
    node.remove_endpoint(&service, "a", a);
    site.run(node.apply());
    assert_eq!(node.metric("mesonet_lb_closed_namespaces", ""), 1.0);
    assert!(echoes(&mut stream));
}

fn is_reset(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    let error = stream.read(&mut [0]).expect_err("the connection ends with an error");
    error.kind() != ErrorKind::WouldBlock
}

#[test]
#[ignore = "needs root"]
fn an_endpoint_of_two_services_stays_with_the_other() {
    let site = Site::new("two");
    let mut node = site.node();
    let (first, second) = (node.put_service("tcp", "one", vip(1)), node.put_service("tcp", "two", vip(2)));
    let a = serve_name("a");
    node.put_endpoint(&first, "a", a, Ready);
    node.put_endpoint(&second, "a", a, Ready);
    site.run(node.apply());
    let (mut one, mut two) = (connect(vip(1)), connect(vip(2)));
    assert_eq!((read_name(&mut one).expect("a"), read_name(&mut two).expect("a")), ('a', 'a'));
    node.remove_endpoint(&first, "a", a);
    site.run(node.apply());
    assert!(is_reset(&mut one), "the first service's connection goes on");
    assert!(echoes(&mut two), "the second service's connection ends");
}
