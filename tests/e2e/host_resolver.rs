//! The host's own resolver leads to mesonet: the C libraries' resolvers and the small tools that people use, on a host
//! of its own with a resolv.conf of its own.

use std::path::Path;
use std::process::Command;

use crate::harness::fake_mesos::task;
use crate::harness::network::Network;
use crate::harness::{FakeMesos, NetDaemon, program};

/// DC/OS' address of the name server.
const ADDRESS: &str = "198.51.100.1";

const BEFORE: &str = "nameserver 192.0.2.53\nsearch marathon.mesos\noptions timeout:10\n";

/// A host with a resolv.conf of its own.
struct Host {
    network: Network,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { network: Network::new(&["host"]), dir: tempfile::tempdir().expect("directory") };
        std::fs::write(host.resolv_conf_path(), BEFORE).expect("written");
        host
    }

    fn resolv_conf_path(&self) -> std::path::PathBuf {
        self.dir.path().join("resolv.conf")
    }

    fn resolv_conf(&self) -> String {
        std::fs::read_to_string(self.resolv_conf_path()).expect("resolv.conf")
    }

    /// A program on the host, which sees the host's file in /etc.
    fn command(&self, program: &str) -> Command {
        let mut command = self.network.command("host", "unshare");
        let mount = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        command.args(["--mount", "sh", "-c", mount]).arg(self.resolv_conf_path()).arg(program);
        command
    }

    #[track_caller]
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        program::outcome(program, self.command(program).args(arguments).output()).success()
    }

    fn has_address(&self) -> bool {
        self.run("ip", &["addr", "show", "dev", "lo"]).contains(ADDRESS)
    }
}

#[test]
#[ignore = "needs root"]
fn every_resolver_of_the_host_is_led_here_and_back_again() {
    let host = Host::new();
    let mesos = FakeMesos::start(1);
    mesos.set_state(&[task("web.1", "web", "127.0.1.1"), task("six.1", "six", "fd00::6")]);
    let state =
        program::run("curl", &["-sS", &format!("http://{}/master/state", mesos.masters()[0])]).success();
    let saved = host.dir.path().join("state.json");
    std::fs::write(&saved, state).expect("written");
    let source = format!("file:{}", saved.display());
    let arguments = [
        "--source",
        &source,
        "--dns-address",
        ADDRESS,
        "--resolv-conf",
        "/etc/resolv.conf",
        "--forward",
        "system",
    ];
    let program = || host.command(env!("CARGO_BIN_EXE_mesonet"));
    let mut net = NetDaemon::start_by(program(), &arguments);
    crate::harness::eventually("resolv.conf leads here", || {
        let text = host.resolv_conf();
        if text.contains(ADDRESS) { Ok(()) } else { Err(text) }
    });
    let written = host.resolv_conf();
    assert!(written.contains("search marathon.mesos") && written.contains("options timeout:10"), "{written}");
    assert_eq!(written.matches("nameserver").count(), 1, "it forwards itself: {written}");
    assert!(host.has_address());

    ask_with_every_client(&host);

    // Killed and started again, it takes over what it has left; at its end, all is as it was.
    net.crash_and_start(program(), &arguments);
    crate::harness::eventually("resolv.conf leads here again", || {
        let text = host.resolv_conf();
        if text.contains(ADDRESS) { Ok(()) } else { Err(text) }
    });
    net.end();
    assert_eq!(host.resolv_conf(), BEFORE);
    assert!(!host.has_address());
}

#[track_caller]
fn ask_with_every_client(host: &Host) {
    // glibc, by its own program; the second name by the search list.
    for name in ["web.marathon.mesos", "web"] {
        let found = host.run("getent", &["ahosts", name]);
        assert!(
            found.lines().all(|line| line.starts_with("127.0.1.1 ")) && !found.is_empty(),
            "{name}: {found}"
        );
    }
    assert!(host.run("getent", &["ahosts", "six.marathon.mesos"]).starts_with("fd00::6 "));
    // musl, by a program made for it.
    let musl = made_by("musl-gcc", host.dir.path());
    assert_eq!(
        host.run(&musl, &["web.marathon.mesos", "six.marathon.mesos", "web"]),
        "127.0.1.1\nfd00::6\n127.0.1.1\n"
    );
    // BusyBox asks by itself.
    let found = host.run("busybox", &["nslookup", "web.marathon.mesos"]);
    assert!(found.contains("Address: 127.0.1.1"), "{found}");
    let found = host.run("host", &["web.marathon.mesos"]);
    assert_eq!(found, "web.marathon.mesos has address 127.0.1.1\n");
    let found = host.run("host", &["-t", "SRV", "_leader._tcp.mesos"]);
    assert!(found.contains("has SRV record 0 ") && found.contains(" leader.mesos."), "{found}");
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(host.run("dig", &["+short", transport, "web.marathon.mesos"]), "127.0.1.1\n");
    }
}

/// A program that prints what `getaddrinfo` finds, with the C library of a compiler.
#[track_caller]
fn made_by(compiler: &str, dir: &Path) -> String {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/programs/resolve.c");
    let made = dir.join("resolve").display().to_string();
    program::run(compiler, &["-static", "-o", &made, source]).success();
    made
}
