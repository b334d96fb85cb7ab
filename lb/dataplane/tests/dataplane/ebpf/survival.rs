//! Nothing ends with the process.

use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use mesonet_lb_dataplane::cleanup;
use mesonet_model::EndpointState::Ready;

use super::{Site, vip};
use crate::fixture::{PATIENCE, ask, connect, echoes, eventually, read_name, serve_name};

#[test]
#[ignore = "needs root"]
fn another_process_takes_over_without_a_gap() {
    let site = Site::new("survive");
    let mut node = site.node();
    let first = node.put_service("tcp", "first", vip(1));
    let second = node.put_service("tcp", "second", vip(2));
    node.put_endpoint(&first, "a", serve_name("a"), Ready);
    node.put_endpoint(&second, "b", serve_name("b"), Ready);
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

/// Connects again and again while something happens. Every connection must be answered.
fn under_load(site: &Site, act: impl FnOnce(&dyn Fn())) {
    let (is_over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            super::join(&format!("/run/netns/{}", site.name));
            while !is_over.load(Ordering::Relaxed) {
                if ask(vip(1)).is_ok_and(|name| name == 'a') {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let _end = End(&is_over);
        act(&|| {
            let before = count.load(Ordering::Relaxed);
            eventually("connections go on", || count.load(Ordering::Relaxed) > before + 3);
        });
    });
}

/// The load ends with the test, however that ends.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
#[ignore = "needs root"]
fn programs_of_another_layout_are_replaced_without_a_gap() {
    let site = Site::new("layout");
    let mut node = site.node();
    let service = node.put_service("tcp", "web", vip(1));
    let a = serve_name("a");
    node.put_endpoint(&service, "a", a, Ready);
    let echo = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let names = node.put_service("udp", "echo", vip(1));
    node.put_endpoint(&names, "a", echo.local_addr().expect("bound"), Ready);
    site.run(node.apply());
    let mut stream = connect(vip(1));
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    let client = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    client.send_to(b"?", vip(1)).expect("sent");
    let view = node.view.clone();
    drop(node);
    // What an older version would have left has another name, and something that this one does not know.
    let directory = site.bpffs.join("mesonet");
    let layout = fs::read_dir(&directory).expect("pins").next().expect("a layout").expect("pins").path();
    let older = directory.join("v0");
    fs::rename(&layout, &older).expect("renamed");
    fs::create_dir(older.join("unknown")).expect("a directory");

    under_load(&site, |go_on| {
        go_on();
        let mut node = site.node();
        // Both are there, until the first view.
        assert!(older.exists());
        go_on();
        node.view = view.clone();
        site.run(node.apply());
        assert!(!older.exists());
        go_on();
        // One more process finds what this one has copied.
        drop(node);
        let mut node = site.node();
        node.view = view;
        site.run(node.apply());
        assert!(echoes(&mut stream));
        assert_eq!(stream.peer_addr().expect("connected"), vip(1));
        let (_, from) = echo.recv_from(&mut [0; 8]).expect("the first datagram");
        client.set_read_timeout(Some(PATIENCE)).expect("valid");
        echo.send_to(b"!", from).expect("sent");
        assert_eq!(client.recv_from(&mut [0; 8]).expect("an answer").1, vip(1));
        // Connections from before end with their endpoint like others.
        node.put_endpoint(&service, "b", serve_name("a"), Ready);
        node.remove_endpoint(&service, "a", a);
        site.run(node.apply());
        assert!(!echoes(&mut stream));
        go_on();
    });
}
