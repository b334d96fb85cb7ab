//! The programs in the kernel: loaded, attached to a cgroup, and pinned, so that they outlive this process.

use std::fs::{self, DirEntry, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use mesonet_ebpf_abi::{LAYOUT, SocketFields};
use rustix::fs::{FsWord, fstatfs};

use super::kernel_types::KernelTypes;
use super::{EbpfError, EbpfSettings, older_layout};
use crate::bpf_call;
use crate::pinning::{self, DIRECTORY, PinningError};
use crate::pins::Pins;
use crate::word_map::octets;

/// The programs, built from ebpf/programs by ebpf/build.sh.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/object/socket.o");

/// The one that counts comes first, so that what the others send is counted.
const HOOKS: [&str; 9] = [
    "mesonet_release",
    "mesonet_recvmsg4",
    "mesonet_recvmsg6",
    "mesonet_getpeername4",
    "mesonet_getpeername6",
    "mesonet_connect4",
    "mesonet_connect6",
    "mesonet_sendmsg4",
    "mesonet_sendmsg6",
];

const MAPS: [&str; 12] = [
    "SERVICES",
    "SLOTS",
    "MAGLEV",
    "MEMBERS",
    "AFFINITIES",
    "CONNECTIONS",
    "MORE_CONNECTIONS",
    "MORE_COUNT",
    "ORIGINS",
    "FLOWS",
    "COUNTS",
    "LOADS",
];

/// What the programs are told of the kernel.
const SOCKET_FIELDS: &str = "SOCKET_FIELDS";

/// Links are always beside those of others; the kernel wants no flag that says so.
const LINK_MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// What tells a file system of control groups, version 2, from others (linux/magic.h).
const CGROUP2_MAGIC: FsWord = 0x6367_7270;

/// A hook's link while it replaces the one before. The file system takes no dots in names.
const NEW_SUFFIX: &str = "_new";

/// What is in the kernel.
pub(super) struct Attached {
    /// The programs with their maps, which are taken over with what they hold.
    pub(super) ebpf: Ebpf,
    /// What other versions have left. It goes on until it is replaced.
    pub(super) older: Vec<PathBuf>,
}

/// Loads the programs and attaches them to a cgroup, beside those of the process before, which go then: no connection
/// is made in between without one of them.
pub(super) fn attach(EbpfSettings { cgroup, bpffs }: &EbpfSettings) -> Result<Attached, EbpfError> {
    let pins = directory(bpffs);
    pinning::make_directory(&pins)?;
    let failed = |source| EbpfError::Cgroup { path: cgroup.clone(), source };
    let cgroup_file = File::open(cgroup).map_err(failed)?;
    if fstatfs(&cgroup_file).map_err(|error| failed(error.into()))?.f_type != CGROUP2_MAGIC {
        return Err(EbpfError::NoCgroup(cgroup.clone()));
    }
    let mut ebpf = load(&pins)?;
    for hook in HOOKS {
        attach_hook(&mut ebpf, hook, &cgroup_file, &pins)?;
    }
    Ok(Attached { ebpf, older: older_layout::find(&bpffs.join(DIRECTORY)) })
}

/// Where everything of this version is pinned.
pub(super) fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join(DIRECTORY).join(LAYOUT)
}

/// Takes all that [`attach`] has pinned.
pub(super) fn keep(pins: &mut Pins) -> Result<(), PinningError> {
    HOOKS.iter().chain(&MAPS).try_for_each(|name| pins.keep(name))
}

/// How many hooks are not attached to the cgroup that is at a path.
pub(super) fn detached(pins: &Pins, cgroup: &Path) -> usize {
    // The kernel numbers a cgroup as its file system does.
    let number = fs::metadata(cgroup).map_or(0, |found| found.ino());
    let is_attached = |hook: &&str| number != 0 && pins.target(hook).is_ok_and(|target| target == number);
    HOOKS.iter().filter(|hook| !is_attached(hook)).count()
}

/// Loads the programs. Those that read sockets in a way that this kernel does not take are replaced by others, which need
/// more time.
fn load(pins: &Path) -> Result<Ebpf, EbpfError> {
    let types = KernelTypes::of_kernel()?;
    let loaded = load_for(types, pins);
    match loaded {
        Err(error) if types.cast.is_some() => {
            tracing::debug!(%error, "This kernel lets programs read sockets only by calls");
            load_for(types.without_cast(), pins)
        }
        loaded => loaded,
    }
}

fn load_for(types: KernelTypes, pins: &Path) -> Result<Ebpf, EbpfError> {
    let fields = octets(&types.fields);
    let mut loader = EbpfLoader::new();
    loader.override_global(SOCKET_FIELDS, &fields[..], true);
    for name in MAPS {
        loader.map_pin_path(name, pins.join(name));
    }
    let mut ebpf = loader.load(&with_cast(OBJECT, types.cast)).map_err(EbpfError::Load)?;
    for hook in HOOKS {
        let program = ebpf.program_mut(hook).ok_or(EbpfError::NoHook(hook))?;
        let loaded = match program {
            Program::CgroupSock(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            _ => return Err(EbpfError::NoHook(hook)),
        };
        loaded.map_err(|source| EbpfError::Attach { hook, source })?;
    }
    Ok(ebpf)
}

/// The object with calls of the kernel's function in it; aya knows only those of helpers. Without the function, the calls
/// are never reached, and the kernel removes them.
fn with_cast(object: &[u8], function: Option<u32>) -> Vec<u8> {
    /// A call of a helper (the instruction set is in Documentation/bpf/standardization of Linux).
    const CALL: [u8; 4] = [0x85, 0, 0, 0];
    /// A call of a function of the kernel, by its number in the description of types.
    const CALL_KERNEL: [u8; 4] = [0x85, 0x20, 0, 0];
    let mut object = object.to_vec();
    if let Some(function) = function {
        let call = [CALL, SocketFields::CAST.to_ne_bytes()].concat();
        let kernels = [CALL_KERNEL, function.to_ne_bytes()].concat();
        for instruction in object.chunks_exact_mut(call.len()).filter(|each| **each == call) {
            instruction.copy_from_slice(&kernels);
        }
    }
    object
}

/// Removes everything of mesonet from the kernel. When it returns, no program is run any more.
///
/// # Errors
/// When a pin cannot be removed.
pub fn cleanup(bpffs: &Path) -> io::Result<()> {
    let directory = bpffs.join(DIRECTORY);
    match detach(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.and_then(|()| fs::remove_dir_all(&directory)),
    }
}

/// Removes the hooks and what they know, of all layouts, and leaves what balances packets. For whoever holds the file
/// system and balances without hooks: those of a process before would send clients by a table that nobody changes.
///
/// # Errors
/// When a pin cannot be removed.
pub fn remove_hooks(bpffs: &Path) -> io::Result<()> {
    if pinning::check_file_system(bpffs).is_err() {
        // Nothing is pinned elsewhere.
        return Ok(());
    }
    let directory = bpffs.join(DIRECTORY);
    for layout in older_layout::find(&directory).into_iter().chain([directory.join(LAYOUT)]) {
        match remove_files(&layout) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            removed => removed?,
        }
        // Packets may have theirs there.
        let _ = fs::remove_dir(&layout);
    }
    Ok(())
}

/// Ends the programs of a layout's own, and removes their names and those of its maps.
fn remove_files(layout: &Path) -> io::Result<()> {
    let mut count = 0;
    for pin in fs::read_dir(layout)? {
        let pin = pin?;
        if !pin.file_type()?.is_dir() {
            detach_pin(&pin);
            fs::remove_file(pin.path())?;
            count += 1;
        }
    }
    if count > 0 {
        tracing::info!(path = %layout.display(), "Took the hooks away that a daemon had left");
    }
    Ok(())
}

/// Ends all programs below a directory. Removing their pins would do so, too, but at a time of the kernel's own choice,
/// and until then connections would still be sent to endpoints.
pub(super) fn detach(directory: &Path) -> io::Result<()> {
    for pin in fs::read_dir(directory)? {
        let pin = pin?;
        if pin.file_type()?.is_dir() {
            detach(&pin.path())?;
        } else {
            detach_pin(&pin);
        }
    }
    Ok(())
}

/// Ends a program, if a name is one's.
fn detach_pin(pin: &DirEntry) {
    let is_map = |name: &str| name.chars().all(|each| each.is_ascii_uppercase() || each == '_');
    if !pin.file_name().to_str().is_some_and(is_map)
        && let Err(error) = bpf_call::detach_pinned(&pin.path())
    {
        tracing::warn!(%error, path = %pin.path().display(), "Cannot end a program at once");
    }
}

fn attach_hook(ebpf: &mut Ebpf, hook: &'static str, cgroup: &File, pins: &Path) -> Result<(), EbpfError> {
    let program = ebpf.program_mut(hook).ok_or(EbpfError::NoHook(hook))?;
    let link = link(program, cgroup).map_err(|source| EbpfError::Attach { hook, source })?;
    let link = link.ok_or(EbpfError::NoHook(hook))?;
    let path = pins.join(hook);
    let new = pins.join(format!("{hook}{NEW_SUFFIX}"));
    // Left by a process that ended at this point.
    let _ = fs::remove_file(&new);
    let pinned = pinning::pin(link, &new)?;
    // The old link ends with its last name.
    fs::rename(&new, &path).map_err(pinning::directory_error(&path))?;
    drop(pinned);
    Ok(())
}

/// Nothing, if the kernel is too old for links.
fn link(program: &mut Program, cgroup: &File) -> Result<Option<FdLink>, ProgramError> {
    if let Program::CgroupSock(program) = program {
        let id = program.attach(cgroup, LINK_MODE)?;
        return Ok(program.take_link(id)?.try_into().ok());
    }
    let program: &mut CgroupSockAddr = program.try_into()?;
    let id = program.attach(cgroup, LINK_MODE)?;
    Ok(program.take_link(id)?.try_into().ok())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A BPF file system, gone in the end.
    struct FileSystem(PathBuf);

    impl Drop for FileSystem {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
            let _ = fs::remove_dir(&self.0);
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn the_kernel_takes_both_ways_to_read_sockets() {
        let path = std::env::temp_dir().join(format!("mesonet-programs-{}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        let file_system = FileSystem(path);
        let mount = ["-t", "bpf", "bpf"];
        let mounted = Command::new("mount").args(mount).arg(&file_system.0).status().expect("mount");
        assert!(mounted.success());
        let types = KernelTypes::of_kernel().expect("a description");
        for types in [types, types.without_cast()] {
            drop(load_for(types, &file_system.0).expect("the programs"));
        }
    }
}
