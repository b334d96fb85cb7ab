//! Users of this machine.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;

use thiserror::Error;

/// Room for one entry of the user database, as `sysconf(_SC_GETPW_R_SIZE_MAX)` suggests with a margin for long
/// directory names.
const ENTRY_BYTES: usize = 16 << 10;

/// The most groups that a user's process gets, the kernel's own bound.
const GROUPS_MAX: usize = 65_536;

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: libc::uid_t,
    pub(super) gid: libc::gid_t,
    pub(super) groups: Vec<libc::gid_t>,
}

/// A task cannot run as the user that it names.
#[derive(Debug, Error)]
pub(super) enum UserError {
    #[error("user '{0}' does not exist on this agent")]
    Unknown(String),
    #[error("cannot run as user '{user}': the agent itself runs as uid {own} and not as root")]
    NotRoot { user: String, own: u32 },
    #[error("cannot look up user '{user}'")]
    Lookup { user: String, source: io::Error },
}

/// Whom a task with this user runs as; `None` for the agent's own identity.
pub(super) fn identity_for(user: Option<&str>) -> Result<Option<Identity>, UserError> {
    let Some(user) = user else { return Ok(None) };
    let identity = look_up(user)?;
    let own = rustix::process::geteuid().as_raw();
    match own {
        _ if identity.uid == own => Ok(None),
        0 => Ok(Some(identity)),
        _ => Err(UserError::NotRoot { user: user.to_owned(), own }),
    }
}

fn look_up(user: &str) -> Result<Identity, UserError> {
    let name = CString::new(user).map_err(|_| UserError::Unknown(user.to_owned()))?;
    let mut entry = MaybeUninit::<libc::passwd>::uninit();
    let mut buffer = vec![0; ENTRY_BYTES];
    let mut found = std::ptr::null_mut();
    // SAFETY: `name` ends with NUL, `entry` and `found` are valid for writes, and the length is that of `buffer`.
    let code = unsafe {
        libc::getpwnam_r(name.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found)
    };
    if found.is_null() {
        return Err(match code {
            0 | libc::ENOENT | libc::ESRCH => UserError::Unknown(user.to_owned()),
            code => UserError::Lookup { user: user.to_owned(), source: io::Error::from_raw_os_error(code) },
        });
    }
    // SAFETY: the call has set `found` to `entry`, hence has initialised it.
    let entry = unsafe { entry.assume_init() };
    let groups = groups_of(&name, entry.pw_gid)
        .map_err(|source| UserError::Lookup { user: user.to_owned(), source })?;
    Ok(Identity { uid: entry.pw_uid, gid: entry.pw_gid, groups })
}

fn groups_of(name: &CString, gid: libc::gid_t) -> io::Result<Vec<libc::gid_t>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `name` ends with NUL, and `count` says how many entries `groups` has room for.
        let result = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &raw mut count) };
        let count = usize::try_from(count).unwrap_or(0);
        if result >= 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        if groups.len() >= GROUPS_MAX {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        groups.resize((groups.len() * 2).max(count).min(GROUPS_MAX), 0);
    }
}

impl Identity {
    /// Becomes this user. Async-signal-safe, for a new process before its program starts.
    pub(super) fn assume(&self) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of one vector, which the call only reads; all three calls are
        // async-signal-safe system calls.
        let failed = unsafe {
            libc::setgroups(self.groups.len(), self.groups.as_ptr()) != 0
                || libc::setgid(self.gid) != 0
                || libc::setuid(self.uid) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_users_are_named() {
        let error = identity_for(Some("no-such-user-here")).expect_err("unknown");
        assert_eq!(error.to_string(), "user 'no-such-user-here' does not exist on this agent");
        let error = identity_for(Some("a\0b")).expect_err("unknown");
        assert!(matches!(error, UserError::Unknown(_)), "{error}");
    }

    #[test]
    fn root_is_in_the_database() {
        let root = look_up("root").expect("root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
    }
}
