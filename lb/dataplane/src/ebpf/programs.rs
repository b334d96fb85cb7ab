//! The programs in the kernel: loaded, attached to a cgroup, and pinned, so that they outlive this process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use mesonet_ebpf_abi::LAYOUT;

use super::{EbpfError, kernel_types, older_layout};
use crate::word_map::octets;
use crate::{bpf_call, pinning};

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

/// The directory of bpffs that holds everything of mesonet.
const DIRECTORY: &str = "mesonet";

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
pub(super) fn attach(bpffs: &Path, cgroup: &Path) -> Result<Attached, EbpfError> {
    let pins = bpffs.join(DIRECTORY).join(LAYOUT);
    pinning::make_directory(&pins)?;
    let cgroup_file =
        File::open(cgroup).map_err(|source| EbpfError::Cgroup { path: cgroup.to_path_buf(), source })?;
    let fields = octets(&kernel_types::socket_fields()?);
    let mut loader = EbpfLoader::new();
    loader.override_global(SOCKET_FIELDS, &fields[..], true);
    for name in MAPS {
        loader.map_pin_path(name, pins.join(name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(EbpfError::Load)?;
    for hook in HOOKS {
        attach_hook(&mut ebpf, hook, &cgroup_file, &pins)?;
    }
    Ok(Attached { ebpf, older: older_layout::find(&bpffs.join(DIRECTORY)) })
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

/// Ends all programs below a directory. Removing their pins would do so, too, but at a time of the kernel's own choice,
/// and until then connections would still be sent to endpoints.
pub(super) fn detach(directory: &Path) -> io::Result<()> {
    for pin in fs::read_dir(directory)? {
        let pin = pin?;
        let is_map = |name: &str| name.chars().all(|each| each.is_ascii_uppercase() || each == '_');
        if pin.file_type()?.is_dir() {
            detach(&pin.path())?;
        } else if !pin.file_name().to_str().is_some_and(is_map)
            && let Err(error) = bpf_call::detach_pinned(&pin.path())
        {
            tracing::warn!(%error, path = %pin.path().display(), "Cannot end a program at once");
        }
    }
    Ok(())
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
    if let Program::CgroupSock(_) = program {
        let program: &mut CgroupSock = program.try_into()?;
        program.load()?;
        let id = program.attach(cgroup, LINK_MODE)?;
        return Ok(program.take_link(id)?.try_into().ok());
    }
    let program: &mut CgroupSockAddr = program.try_into()?;
    program.load()?;
    let id = program.attach(cgroup, LINK_MODE)?;
    Ok(program.take_link(id)?.try_into().ok())
}
