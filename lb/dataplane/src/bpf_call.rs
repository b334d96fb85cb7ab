//! The calls of bpf(2) that aya does not offer: many entries of a map at once, names for whatever has a descriptor, and what
//! a link is attached to and its end at once.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

/// Commands of linux/bpf.h.
#[derive(Debug, Clone, Copy)]
#[repr(i32)]
enum Command {
    Lookup = 1,
    Update = 2,
    Delete = 3,
    ObjectPin = 6,
    ObjectGet = 7,
    ObjectInformation = 15,
    LookupBatch = 24,
    UpdateBatch = 26,
    DeleteBatch = 27,
    LinkDetach = 34,
}

/// Entries per call. A bucket of a hash map must fit, and the kernel's page of keys is small.
const BATCH: usize = 4096;

/// `union bpf_attr` of `BPF_MAP_LOOKUP_ELEM` and others of one entry.
#[repr(C)]
#[derive(Default)]
struct Entry {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` of the commands for many entries.
#[repr(C)]
#[derive(Default)]
struct Entries {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    flags: u64,
    batch_flags: u64,
}

/// `union bpf_attr` of `BPF_OBJ_GET` and `BPF_OBJ_PIN`.
#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// `union bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct Information {
    descriptor: u32,
    length: u32,
    information: u64,
}

/// The beginning of `struct bpf_link_info`, as far as links of cgroups and interfaces have the same form.
#[repr(C)]
#[derive(Default)]
struct LinkInformation {
    kind: u32,
    id: u32,
    program: u32,
    _pad: u32,
    /// Of a cgroup 64 bits, of an interface 32.
    target: u64,
}

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_OF_CGROUP: u32 = 3;

/// `union bpf_attr` of `BPF_LINK_DETACH`.
#[repr(C)]
#[derive(Default)]
struct Link {
    descriptor: u32,
    _pad: u32,
}

/// Reads the value of a key, which must be as long as the map's values are.
pub(crate) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut entry = Entry {
        map: number(map),
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        ..Entry::default()
    };
    call(Command::Lookup, &mut entry).map(drop)
}

/// Writes the value of a key; only if it has none yet, if that is said.
pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], is_only_new: bool) -> io::Result<()> {
    let mut entry = Entry {
        map: number(map),
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: u64::from(is_only_new),
        ..Entry::default()
    };
    call(Command::Update, &mut entry).map(drop)
}

/// Removes a key.
pub(crate) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut entry = Entry { map: number(map), key: key.as_ptr() as u64, ..Entry::default() };
    call(Command::Delete, &mut entry).map(drop)
}

/// Writes many entries, in their order. Those before one that fails are written.
pub(crate) fn update_many(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: usize) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let (key, value) = (keys.len() / count, values.len() / count);
    for (keys, values) in keys.chunks(BATCH * key).zip(values.chunks(BATCH * value)) {
        let mut entries = Entries {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: (keys.len() / key) as u32,
            map: number(map),
            ..Entries::default()
        };
        call(Command::UpdateBatch, &mut entries)?;
    }
    Ok(())
}

/// Removes many entries. The first that is not there ends the call with an error; returns how many were removed.
pub(crate) fn delete_many(map: BorrowedFd<'_>, keys: &[u8], key: usize) -> (usize, io::Result<()>) {
    let mut removed = 0;
    for keys in keys.chunks(BATCH * key) {
        let mut entries = Entries {
            keys: keys.as_ptr() as u64,
            count: (keys.len() / key) as u32,
            map: number(map),
            ..Entries::default()
        };
        let result = call(Command::DeleteBatch, &mut entries);
        removed += entries.count as usize;
        if let Err(error) = result {
            return (removed, Err(error));
        }
    }
    (removed, Ok(()))
}

/// Reads all entries of a hash map: `each` gets keys and values, packed. `value` is what the kernel takes for one.
pub(crate) fn lookup_all(
    map: BorrowedFd<'_>,
    (key, value): (usize, usize),
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    let mut keys = vec![0_u8; BATCH * key];
    let mut values = vec![0_u8; BATCH * value];
    let mut position: Option<[u8; 4]> = None;
    loop {
        let mut next = [0_u8; 4];
        let mut entries = Entries {
            in_batch: position.as_ref().map_or(0, |position| position.as_ptr() as u64),
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: BATCH as u32,
            map: number(map),
            ..Entries::default()
        };
        let result = call(Command::LookupBatch, &mut entries);
        let is_last = match result {
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error),
        };
        let count = entries.count as usize;
        each(&keys[..count * key], &values[..count * value]);
        if is_last {
            return Ok(());
        }
        position = Some(next);
    }
}

/// Ends what a pinned link does, before it returns. Removing its last name alone does so some time later.
pub(crate) fn detach_pinned(path: &Path) -> io::Result<()> {
    let link = open_pinned(path)?;
    let mut attributes = Link { descriptor: link.as_raw_fd() as u32, _pad: 0 };
    call(Command::LinkDetach, &mut attributes).map(drop)
}

/// Opens whatever is pinned.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = name(path)?;
    let mut object = Object { path: path.as_ptr() as u64, ..Object::default() };
    let descriptor = call(Command::ObjectGet, &mut object)?;
    // SAFETY: the kernel has just made it for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Gives whatever it is a name, which must be free.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = name(path)?;
    let mut object = Object { path: path.as_ptr() as u64, descriptor: number(object), flags: 0 };
    call(Command::ObjectPin, &mut object).map(drop)
}

/// The number of the cgroup or interface that a link is attached to; 0 if it is not any more.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut found = LinkInformation::default();
    let mut attributes = Information {
        descriptor: number(link),
        length: size_of::<LinkInformation>() as u32,
        information: &raw mut found as u64,
    };
    call(Command::ObjectInformation, &mut attributes)?;
    // The programs are for machines that have the lower half first.
    let is_whole = found.kind == LINK_OF_CGROUP;
    Ok(if is_whole { found.target } else { u64::from(found.target as u32) })
}

fn name(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt as _;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn number(map: BorrowedFd<'_>) -> u32 {
    // Descriptors are not negative.
    map.as_raw_fd() as u32
}

fn call<T>(command: Command, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are those of the command, and what they point to lives longer than the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as i32, &raw mut *attributes, size_of::<T>()) };
    // Descriptors and zero fit.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
