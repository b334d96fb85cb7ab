//! Signals as a file descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// What would end the supervisor together with the agent or its terminal, and the end of children.
const TAKEN: [libc::c_int; 8] = [
    libc::SIGCHLD,
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGPIPE,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Signals of this process, taken out of the usual delivery.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals and makes them readable.
    pub(super) fn take() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is valid for writes, and `sigemptyset` initialises it before the other calls read it.
        // `sigprocmask` and `signalfd` only read it.
        let descriptor = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in TAKEN {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Forgets what has arrived: which signal it was does not matter, since children are looked at after each wake.
    pub(super) fn clear(&self) {
        let mut buffer = [0; 16 * size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.0, &mut buffer).is_ok_and(|bytes| bytes > 0) {}
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Gives a new process the signal state of a login: nothing blocked, nothing ignored. Async-signal-safe.
pub(super) fn reset_in_child() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is initialised by `sigemptyset` before it is read; `signal` with `SIG_DFL` has no handler that
    // could be wrong, and refuses SIGKILL and SIGSTOP harmlessly. All three calls are async-signal-safe.
    unsafe {
        for signal in 1..=31 {
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}
