//! HTTP clients with keep-alive connections, while endpoints come and go.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use mesonet_model::EndpointState::{Draining, Ready};

use crate::fixture::{Node, connect, eventually, serve, vip};

/// Reads a head and the body that its Content-Length promises; `None` at the end of the stream.
fn read_message(stream: &mut BufReader<TcpStream>) -> Option<(Vec<String>, Vec<u8>)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).expect("a line") == 0 {
            assert!(head.is_empty(), "a head that is cut short: {head:?}");
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_ascii_lowercase()),
        }
    }
    let length = head
        .iter()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a whole body");
    Some((head, body))
}

fn says_close(head: &[String]) -> bool {
    head.iter().any(|line| line.starts_with("connection: close"))
}

/// An HTTP/1.1 server that echoes bodies. As RFC 9112 allows, it closes after a request that asks for it without saying
/// so in its answer.
fn serve_http() -> SocketAddr {
    serve(|stream| {
        let mut writer = stream.try_clone().expect("a clone");
        let mut reader = BufReader::new(stream);
        while let Some((head, body)) = read_message(&mut reader) {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            writer.write_all(&[answer.as_bytes(), &body].concat()).expect("the client waits");
            if says_close(&head) {
                return;
            }
        }
    })
}

/// Sends requests on keep-alive connections until told to stop. Any request without its answer is a panic.
fn keep_asking(address: SocketAddr, stop: &AtomicBool) -> (usize, usize) {
    let (mut requests, mut connections) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        connections += 1;
        let mut reader = BufReader::new(connect(address));
        while !stop.load(Ordering::Relaxed) {
            let body = format!("request {requests}");
            let request =
                format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            reader.get_mut().write_all(request.as_bytes()).expect("the connection takes a request");
            let (head, answer) = read_message(&mut reader).expect("an answer to every request");
            assert_eq!(String::from_utf8_lossy(&answer), body);
            requests += 1;
            if says_close(&head) {
                break;
            }
        }
    }
    (requests, connections)
}

#[tokio::test]
async fn no_request_on_a_keep_alive_connection_fails_while_endpoints_drain_and_die() {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("tcp", "web", address);
    let stop = Arc::new(AtomicBool::new(false));
    let mut endpoints = [("a", serve_http()), ("b", serve_http())];
    node.put_endpoint(&service, endpoints[0].0, endpoints[0].1, Ready);
    node.apply().await;
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || keep_asking(address, &stop))
        })
        .collect();
    eventually("clients are connected", || node.metric("mesonet_lb_active_connections", "") == 4.0);
    for _ in 0..50 {
        let [old, new] = endpoints;
        node.put_endpoint(&service, new.0, new.1, Ready);
        node.put_endpoint(&service, old.0, old.1, Draining);
        node.apply().await;
        let mut busy = node.balancer.busy();
        busy.wait_for(BTreeSet::is_empty).await.expect("the balancer lives");
        node.remove_endpoint(&service, old.0, old.1);
        node.apply().await;
        endpoints = [new, old];
    }
    stop.store(true, Ordering::Relaxed);
    let results = clients.into_iter().map(|client| client.join().expect("no request failed"));
    let (requests, connections) = results.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(connections > 4 && requests > connections, "{requests} requests on {connections} connections");
}

#[tokio::test]
async fn bytes_of_other_protocols_pass_a_draining_endpoint_unchanged() {
    let mut node = Node::proxy();
    let address = vip();
    let service = node.put_service("tcp", "web", address);
    let echo = serve(|mut stream| {
        let mut copy = stream.try_clone().expect("a clone");
        std::io::copy(&mut stream, &mut copy).expect("echoed");
    });
    node.put_endpoint(&service, "a", echo, Ready);
    node.apply().await;
    let mut stream = connect(address);
    let mut exchange = |bytes: &[u8]| {
        stream.write_all(bytes).expect("sent");
        let mut answer = vec![0; bytes.len()];
        stream.read_exact(&mut answer).expect("echoed");
        assert_eq!(answer, bytes);
    };
    exchange(b"before");
    node.put_endpoint(&service, "a", echo, Draining);
    node.apply().await;
    for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"*1\r\n$4\r\nPING\r\n", b"GET key\r\n\r\n", &[0; 5000]] {
        exchange(bytes);
    }
}
