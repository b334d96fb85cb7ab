//! The network namespaces of this node: a socket can only be listed and ended from within its own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::sockets;

/// More are not looked for: a node has about as many as containers.
const NAMESPACES_MAX: usize = 16_384;

/// Where namespaces are kept that may have no process.
const NAMED: &str = "/run/netns";

/// What happened in the namespaces.
#[derive(Debug)]
pub(super) struct Visit<T> {
    /// What was found, namespace by namespace.
    pub(super) found: Vec<T>,
    /// How many could not be entered.
    pub(super) closed: usize,
    /// Why, for one of them.
    pub(super) reason: Option<io::Error>,
}

/// Calls a function within every network namespace whose cookie is wanted, and tells it the cookie, by a thread that ends with it. Processes are
/// those that /proc shows: a daemon in a process namespace of its own sees no others.
pub(super) fn visit<T: Send>(
    is_wanted: impl Fn(u64) -> bool + Sync,
    act: impl Fn(u64, &OwnedFd) -> T + Sync,
) -> Visit<T> {
    // A thread that has entered a namespace stays there.
    let visitor = || {
        let mut visit = Visit { found: Vec::new(), closed: 0, reason: None };
        for path in every() {
            match enter(&path) {
                Ok((cookie, socket)) if is_wanted(cookie) => visit.found.push(act(cookie, &socket)),
                Ok(_) => {}
                Err(error) if is_none(&error) => {}
                Err(error) => {
                    visit.closed += 1;
                    visit.reason = Some(error);
                }
            }
        }
        visit
    };
    thread::scope(|scope| scope.spawn(visitor).join()).unwrap_or_else(|_| Visit {
        found: Vec::new(),
        closed: 1,
        reason: None,
    })
}

/// Whether a namespace has ended meanwhile, or a name is not bound to one yet or any more. None of them has a socket.
fn is_none(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(libc::ESRCH)
}

/// A path to each, the own one first.
fn every() -> Vec<PathBuf> {
    let own = PathBuf::from("/proc/thread-self/ns/net");
    let is_process =
        |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
    let processes = entries("/proc").filter(is_process).map(|entry| entry.path().join("ns/net"));
    let named = entries(NAMED).map(|entry| entry.path());
    let mut seen = BTreeSet::new();
    std::iter::once(own)
        .chain(processes)
        .chain(named)
        .filter(|path| fs::metadata(path).is_ok_and(|found| seen.insert((found.dev(), found.ino()))))
        .take(NAMESPACES_MAX)
        .collect()
}

fn entries(directory: &str) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(directory).into_iter().flatten().flatten()
}

/// Enters a namespace. Returns its cookie and a socket for requests in it.
fn enter(path: &PathBuf) -> io::Result<(u64, OwnedFd)> {
    let namespace = File::open(path)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = sockets::open()?;
    Ok((cookie(&socket)?, socket))
}

/// The kernel's cookie of the network namespace that a socket is in.
fn cookie(socket: &OwnedFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    // It fits.
    let mut size = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both places are of the sizes that are told, and live longer than the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root"]
    fn each_namespace_is_visited_once() {
        let visit = visit(|_| true, |_, socket| cookie(socket).expect("a cookie"));
        let cookies: BTreeSet<u64> = visit.found.iter().copied().collect();
        assert_eq!(cookies.len(), visit.found.len());
        let own = cookie(&sockets::open().expect("a socket")).expect("a cookie");
        assert!(cookies.contains(&own));
        let others = super::visit(|cookie| cookie != own, |cookie, _| cookie);
        assert!(!others.found.contains(&own));
    }
}
