//! Hooks in the kernel, in a network namespace and a cgroup of the test's own.

mod clients;
mod death;
mod ledger;
mod mixed;
mod policies;
mod room;
mod survival;
mod traffic;
mod upkeep;

use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use mesonet_lb_dataplane::{EbpfSettings, cleanup};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Builder, Runtime};

use crate::fixture::{Node, eventually, unique};

/// Longer than it takes to find that an endpoint has no connections.
const LOOKS: Duration = Duration::from_millis(900);

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
        let name = unique(test);
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

    /// Makes a namespace beside the own one, as a container has. The own one is 10.77.0.1 and fd77::1 there.
    fn container(&self) -> Container {
        let name = format!("{}-c", self.name);
        run("ip", &["netns", "add", &name]);
        let container = Container { name };
        // Interface names are short.
        let veth = format!("mn{}", std::process::id());
        let peer = ["peer", "name", "eth0", "netns", &container.name];
        run("ip", &[&["-n", &self.name, "link", "add", &veth, "type", "veth"][..], &peer].concat());
        for (namespace, link, number) in [(&self.name, veth.as_str(), 1), (&container.name, "eth0", 2)] {
            let inside = ["-n", namespace];
            run(
                "ip",
                &[&inside[..], &["address", "add", &format!("10.77.0.{number}/24"), "dev", link]].concat(),
            );
            let ipv6 = format!("fd77::{number}/64");
            run("ip", &[&inside[..], &["address", "add", &ipv6, "dev", link, "nodad"]].concat());
            run("ip", &[&inside[..], &["link", "set", link, "up"]].concat());
        }
        run("ip", &["-n", &container.name, "link", "set", "lo", "up"]);
        container
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
        // A namespace of another test may be being made, which has a copy of it for a moment.
        run("umount", &["--lazy", text(&self.bpffs)]);
        run("ip", &["netns", "delete", &self.name]);
        let _ = fs::remove_dir(&self.bpffs);
        eventually("the cgroup is empty", || fs::remove_dir(&self.cgroup).is_ok());
    }
}

/// A network namespace whose processes are in the cgroup, too.
struct Container {
    name: String,
}

impl Container {
    const HOST: &'static str = "10.77.0.1";
    const HOST6: &'static str = "fd77::1";
    const OWN: &'static str = "10.77.0.2";
    const OWN6: &'static str = "fd77::2";

    /// Calls a function in the namespace.
    fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        let inside = move || {
            join(&path);
            act()
        };
        thread::scope(|scope| scope.spawn(inside).join().expect("the function returns"))
    }

    /// A program that will run in the namespace.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
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

fn vip6(number: u16) -> SocketAddr {
    ([0xfd01, 0xc, 0, 0, 0, 0, 0, number], 80).into()
}
