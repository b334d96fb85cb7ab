//! Pipes through which bulk data moves without being copied to this process.

use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// Bytes that a pipe should hold: enough that one round moves what a socket's buffers hold on a fast link.
pub(super) const PIPE_BYTES: usize = 256 * 1024;

/// An empty pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
}

/// Hands out pipes up to a bound and keeps those that come back.
#[derive(Debug)]
pub(super) struct PipePool {
    idle: Vec<Pipe>,
    /// How many more may be made.
    left: usize,
}

impl PipePool {
    pub(super) fn new(pipes_max: usize) -> Self {
        Self { idle: Vec::new(), left: pipes_max }
    }

    /// A pipe, unless all are in use or the system has none to give.
    pub(super) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.left == 0 {
            return None;
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // An unprivileged user's share of pipe memory may be used up; the pipe works at its smaller size, too.
        let _size_as_given = fcntl_setpipe_size(&write, PIPE_BYTES);
        self.left -= 1;
        Some(Pipe { read, write })
    }

    /// Takes back an empty pipe.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        self.idle.push(pipe);
    }

    /// A pipe was closed because data was left in it.
    pub(super) fn forget(&mut self, pipe: Pipe) {
        drop(pipe);
        self.left += 1;
    }
}
