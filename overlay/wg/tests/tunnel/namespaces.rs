//! Network namespaces that a test makes and deletes.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a test waits for what must come, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Namespaces in a row, each with a wire to the next one: `10.9.N.1` and `10.9.N.2` at the ends of wire N.
pub struct Namespaces {
    names: Vec<String>,
}

impl Namespaces {
    /// Makes so many. Those in the middle forward.
    pub fn in_a_row(count: usize) -> Self {
        // Not a process id: these come again, also that of a test that was killed and has left something.
        let row = RandomState::new().build_hasher().finish();
        let name = |place| format!("mnw{row:016x}-{place}");
        let row = Self { names: (0..count).map(name).collect() };
        for name in &row.names {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
            ip(&["netns", "exec", name, "sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        }
        for wire in 0..count - 1 {
            let (left, right) = (&row.names[wire], &row.names[wire + 1]);
            ip(&["-n", left, "link", "add", "right", "type", "veth", "peer", "name", "left", "netns", right]);
            ip(&["-n", left, "addr", "add", &format!("10.9.{wire}.1/24"), "dev", "right"]);
            ip(&["-n", right, "addr", "add", &format!("10.9.{wire}.2/24"), "dev", "left"]);
            ip(&["-n", left, "link", "set", "right", "up"]);
            ip(&["-n", right, "link", "set", "left", "up"]);
        }
        row
    }

    /// The name of one.
    pub fn name(&self, place: usize) -> &str {
        &self.names[place]
    }

    /// Runs `ip` on one.
    pub fn ip(&self, place: usize, arguments: &str) {
        let mut command = vec!["-n", self.name(place)];
        command.extend(arguments.split_whitespace());
        ip(&command);
    }

    /// Runs something in one, on a thread of its own.
    pub fn inside<T: Send>(&self, place: usize, run: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name(place))).expect("the namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: the descriptor is open, and the call changes nothing but this thread's namespace.
                let done = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(done, 0, "{}", io::Error::last_os_error());
                run()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().expect("ip");
    assert!(done.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr));
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
