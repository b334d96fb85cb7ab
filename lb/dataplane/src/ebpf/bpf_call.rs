//! The call of bpf(2) that aya does not offer: the end of a link at once.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

/// Commands of linux/bpf.h.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
enum Command {
    ObjectGet = 7,
    LinkDetach = 34,
}

/// `union bpf_attr` of `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// `union bpf_attr` of `BPF_LINK_DETACH`.
#[repr(C)]
#[derive(Default)]
struct Link {
    descriptor: u32,
    _pad: u32,
}

/// Ends what a pinned link does, before it returns. Removing its last name alone does so some time later.
pub(super) fn detach_pinned(path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut object = Object { path: path.as_ptr() as u64, ..Object::default() };
    let descriptor = call(Command::ObjectGet, &mut object)?;
    // SAFETY: the kernel has just made it for this call.
    let link = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let mut attributes = Link { descriptor: link.as_raw_fd() as u32, _pad: 0 };
    call(Command::LinkDetach, &mut attributes).map(drop)
}

fn call<T>(command: Command, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are those of the command, and what they point to lives longer than the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as i32, &raw mut *attributes, size_of::<T>()) };
    // Descriptors and zero fit.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
