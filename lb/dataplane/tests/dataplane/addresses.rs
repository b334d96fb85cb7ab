//! Which virtual addresses are the node's own.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use mesonet_model::EndpointState::Ready;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::Builder;

use crate::fixture::{Node, ask, eventually, serve_name, unique};

/// A network namespace with nothing but loopback.
struct Lonely(String);

impl Lonely {
    fn new(test: &str) -> Self {
        let lonely = Self(unique(test));
        lonely.ip(&["netns", "add", &lonely.0]);
        lonely.ip(&["-n", &lonely.0, "link", "set", "lo", "up"]);
        lonely
    }

    fn ip(&self, arguments: &[&str]) {
        let output = Command::new("ip").args(arguments).output().expect("ip runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs something inside. Threads that it starts are there as well.
    fn run(&self, what: impl FnOnce() + Send) {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let place = std::fs::File::open(format!("/run/netns/{}", self.0)).expect("the namespace");
                move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network)).expect("join");
                what();
            });
            inside.join().expect("no panic");
        });
    }
}

impl Drop for Lonely {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).output();
    }
}

/// Whether somebody answers a datagram soon. It may be lost: then another one has to be sent.
fn is_answered(to: SocketAddr) -> bool {
    let client = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a free port");
    client.set_read_timeout(Some(Duration::from_secs(1))).expect("set");
    client.send_to(b"?", to).expect("sent");
    let mut answer = [0; 1];
    client.recv_from(&mut answer).is_ok_and(|(length, from)| (length, from) == (1, to))
}

/// An endpoint that sends every datagram back.
fn echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a free port");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut datagram = [0; 16];
        while let Ok((length, client)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..length], client);
        }
    });
    address
}

#[test]
#[ignore = "needs root"]
fn an_ipv6_address_is_served_as_soon_as_a_route_brings_it_here() {
    let lonely = Lonely::new("route");
    lonely.run(|| {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut node = runtime.block_on(async { Node::proxy() });
        let web: SocketAddr = "[fd11::1]:80".parse().expect("address");
        let dns: SocketAddr = "[fd11::2]:53".parse().expect("address");
        let tcp = node.put_service("tcp", "web", web);
        node.put_endpoint(&tcp, "a", serve_name("a"), Ready);
        let udp = node.put_service("udp", "dns", dns);
        node.put_endpoint(&udp, "b", echo(), Ready);
        let failures = runtime.block_on(node.apply());
        for (service, address) in [(&tcp, web), (&udp, dns)] {
            let command = format!("`ip route add local {} dev lo`", address.ip());
            assert!(failures[service].contains(&command), "{failures:?}");
        }

        // What it says, for one of them and then for all.
        lonely.ip(&["-n", &lonely.0, "route", "add", "local", "fd11::1", "dev", "lo"]);
        let failures = runtime.block_on(node.balancer.observe());
        assert_eq!(failures.keys().collect::<Vec<_>>(), [&udp]);
        assert_eq!(ask(web).expect("an answer"), 'a');
        lonely.ip(&["-n", &lonely.0, "route", "add", "local", "fd11::/16", "dev", "lo"]);
        assert_eq!(runtime.block_on(node.balancer.observe()), [].into());
        eventually("a datagram is answered", || is_answered(dns));
        drop(node);
    });
}
