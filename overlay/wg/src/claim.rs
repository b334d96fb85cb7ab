//! Who has the tunnel of a network namespace: the process that listens at a name which the namespace has and which goes
//! with the process, however that ends.

use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen};

use crate::device::DeviceError;
use crate::interfaces::is_in_use;

/// How long to wait for a process that is just ending, and how often to look whether it has.
const ENDING_MAX: Duration = Duration::from_secs(2);
const ENDING_LOOK: Duration = Duration::from_millis(20);

/// How many others are told who this process is. Nobody is ever let in, so that they stay in the queue; to further ones
/// it is another process.
const BACKLOG: i32 = 128;

/// The right to the tunnel of a name, which others do not get meanwhile.
#[derive(Debug)]
pub(crate) struct Claim {
    _listener: Option<OwnedFd>,
}

impl Claim {
    /// Takes it, if nobody has it or soon nobody does.
    pub(crate) fn take(tunnel: &str) -> Result<Self, DeviceError> {
        let failed = |error: Errno| DeviceError::Claim { source: error.into() };
        let address = address_of(tunnel).map_err(failed)?;
        let deadline = Instant::now() + ENDING_MAX;
        loop {
            let socket = socket(SocketFlags::CLOEXEC).map_err(failed)?;
            match bind(&socket, &address).and_then(|()| listen(&socket, BACKLOG)) {
                Ok(()) => return Ok(Self { _listener: Some(socket) }),
                Err(Errno::ADDRINUSE) if Instant::now() < deadline => thread::sleep(ENDING_LOOK),
                Err(Errno::ADDRINUSE) => break,
                Err(error) => return Err(failed(error)),
            }
        }
        let holder = holder(&address).unwrap_or_else(|_| "another process".to_owned());
        if is_in_use(tunnel)? {
            return Err(DeviceError::InUse { name: tunnel.to_owned(), holder });
        }
        // Any user may listen at a name, but not read packets.
        tracing::warn!(holder, "Somebody keeps the name of the tunnel and has none");
        Ok(Self { _listener: None })
    }
}

fn address_of(tunnel: &str) -> rustix::io::Result<SocketAddrUnix> {
    SocketAddrUnix::new_abstract_name(format!("mesonet-tunnel/{tunnel}").as_bytes())
}

fn socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Who listens, for people. It does not wait for it, whose queue may be full.
fn holder(address: &SocketAddrUnix) -> io::Result<String> {
    let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    connect(&socket, address)?;
    let pid = listener_of(&socket)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
    Ok(format!("process {pid} ({})", name.trim()))
}

/// The process that listens where a socket is connected to; 0 if it is in another namespace of processes.
fn listener_of(socket: &OwnedFd) -> io::Result<libc::pid_t> {
    // SAFETY: credentials are numbers, for which zero is a value.
    let mut found: libc::ucred = unsafe { mem::zeroed() };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: what is written lives during the call, and is given with its length.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(found.pid) } else { Err(io::Error::last_os_error()) }
}
