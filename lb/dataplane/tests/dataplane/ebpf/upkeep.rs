//! What others take away from the kernel is put back.

use std::fs;
use std::net::TcpStream;
use std::time::Duration;

use mesonet_lb_dataplane::{EbpfSettings, KernelHold, LoadBalancer, cleanup};
use mesonet_model::EndpointState::Ready;

use super::{Site, run, text, vip};
use crate::fixture::{Node, ask, connect, echoes, eventually, read_name, serve_name};

const MISSING: &str = "mesonet_lb_missing_attachments";
const RESTORED: &str = "mesonet_lb_restored_attachments_total";

/// A node with a service at the first virtual address.
fn serving(site: &Site, settings: &EbpfSettings) -> Node {
    let mut node = site.run(async { Node::ebpf(settings) });
    let service = node.put_service("tcp", "web", vip(1));
    node.put_endpoint(&service, "a", serve_name("a"), Ready);
    site.run(node.apply());
    assert_eq!(ask(vip(1)).expect("it is balanced"), 'a');
    node
}

/// Has the node look at the kernel until something is true.
fn looks_until(site: &Site, node: &mut Node, what: &str, is_true: impl Fn(&Node) -> bool) {
    eventually(what, || {
        drop(site.run(node.balancer.observe()));
        is_true(node)
    });
}

#[test]
#[ignore = "needs root"]
fn hooks_that_somebody_ends_are_attached_again() {
    let site = Site::new("ended");
    let mut node = serving(&site, &site.settings());
    let mut stream = connect(vip(1));
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    cleanup(&site.bpffs).expect("all is ended, and its pins are removed");
    assert!(TcpStream::connect_timeout(&vip(1), Duration::from_millis(200)).is_err());
    looks_until(&site, &mut node, "it is balanced again", |_| {
        TcpStream::connect_timeout(&vip(1), Duration::from_millis(200)).is_ok()
    });
    assert_eq!(ask(vip(1)).expect("it is balanced again"), 'a');
    assert!(echoes(&mut stream));
    assert_eq!((node.metric(MISSING, ""), node.metric(RESTORED, "hook")), (0.0, 9.0));
    // What the next process finds is what this one has left.
    let view = node.view.clone();
    drop(node);
    assert_eq!(ask(vip(1)).expect("nobody runs"), 'a');
    let mut node = site.node();
    node.view = view;
    site.run(node.apply());
    assert_eq!(ask(vip(1)).expect("another one runs"), 'a');
}

#[test]
#[ignore = "needs root"]
fn pins_that_somebody_removes_are_made_again() {
    let site = Site::new("unpinned");
    let mut node = serving(&site, &site.settings());
    fs::remove_dir_all(site.bpffs.join("mesonet")).expect("removed");
    assert_eq!(ask(vip(1)).expect("the process has them, too"), 'a');
    looks_until(&site, &mut node, "they are pinned", |node| node.metric(RESTORED, "pin") > 0.0);
    drop(node);
    assert_eq!(ask(vip(1)).expect("nobody runs"), 'a');
}

#[test]
#[ignore = "needs root"]
fn another_file_system_takes_the_place_of_one_that_is_unmounted() {
    let site = Site::new("unmounted");
    let mut node = serving(&site, &site.settings());
    node.balancer = node.balancer.holding(Some(KernelHold::take(&site.bpffs).expect("it is free")));
    run("umount", &["--lazy", text(&site.bpffs)]);
    assert_eq!(ask(vip(1)).expect("the process has it, too"), 'a');
    looks_until(&site, &mut node, "it is told", |node| node.metric(MISSING, "pin") > 0.0);
    assert_eq!(fs::read_dir(&site.bpffs).expect("a directory").count(), 0, "nothing is made there");
    run("mount", &["-t", "bpf", "bpf", text(&site.bpffs)]);
    looks_until(&site, &mut node, "they are pinned there", |node| node.metric(MISSING, "pin") == 0.0);
    assert!(KernelHold::take(&site.bpffs).is_err(), "it is still this one that changes it");
    drop(node);
    assert_eq!(ask(vip(1)).expect("nobody runs"), 'a');
}

#[test]
#[ignore = "needs root"]
fn a_cgroup_that_is_made_anew_has_the_hooks() {
    let site = Site::new("regrouped");
    let cgroup = site.cgroup.join("inner");
    fs::create_dir(&cgroup).expect("a cgroup");
    site.enter(&cgroup);
    let settings = EbpfSettings { cgroup: cgroup.clone(), ..site.settings() };
    let mut node = serving(&site, &settings);
    site.enter(&site.cgroup);
    eventually("the cgroup is empty", || fs::remove_dir(&cgroup).is_ok());
    looks_until(&site, &mut node, "it is told", |node| node.metric(MISSING, "hook") == 9.0);
    fs::create_dir(&cgroup).expect("a cgroup");
    site.enter(&cgroup);
    looks_until(&site, &mut node, "they are attached", |node| node.metric(MISSING, "hook") == 0.0);
    assert_eq!(ask(vip(1)).expect("it is balanced again"), 'a');
    drop(node);
    site.enter(&site.cgroup);
    eventually("the cgroup is empty", || fs::remove_dir(&cgroup).is_ok());
}

#[test]
#[ignore = "needs root"]
fn hooks_that_a_daemon_has_left_give_way_to_the_proxy() {
    let site = Site::new("replaced");
    let node = serving(&site, &site.settings());
    let mut stream = connect(vip(1));
    assert_eq!(read_name(&mut stream).expect("a name"), 'a');
    drop(node);
    assert_eq!(ask(vip(1)).expect("nobody runs"), 'a');
    let mut layouts = fs::read_dir(site.bpffs.join("mesonet")).expect("pins");
    let layout = layouts.next().expect("a layout").expect("pins").path();
    fs::create_dir(layout.join("packet-0")).expect("a directory");
    let no_cgroup = EbpfSettings { cgroup: std::env::temp_dir(), ..site.settings() };
    let balancer = site.run(async { LoadBalancer::ebpf_or_proxy(&no_cgroup, &prometheus::Registry::new()) });
    assert!(TcpStream::connect_timeout(&vip(1), Duration::from_millis(200)).is_err());
    let left: Vec<_> =
        fs::read_dir(&layout).expect("it is left").map(|pin| pin.expect("a pin").file_name()).collect();
    assert_eq!(left, ["packet-0"], "what balances packets is left alone");
    assert!(echoes(&mut stream));
    drop(balancer);
}
