//! The programs in the kernel: loaded, attached to a cgroup, and pinned, so that they outlive this process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::Map;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use aya::{Ebpf, EbpfLoader};
use mesonet_ebpf_abi::LAYOUT;

use super::maps::{Maps, Origins, WordMap};
use super::{EbpfError, bpf_call};

/// The programs, built from ebpf/programs by ebpf/build.sh.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/object/socket.o");

const HOOKS: [&str; 8] = [
    "mesonet_connect4",
    "mesonet_connect6",
    "mesonet_sendmsg4",
    "mesonet_sendmsg6",
    "mesonet_recvmsg4",
    "mesonet_recvmsg6",
    "mesonet_getpeername4",
    "mesonet_getpeername6",
];

const MAPS: [&str; 6] = ["SERVICES", "SLOTS", "MEMBERS", "ORIGINS", "FLOWS", "COUNTS"];

/// Links are always beside those of others; the kernel wants no flag that says so.
const LINK_MODE: CgroupAttachMode = CgroupAttachMode::Single;

/// The directory of bpffs that holds everything of mesonet.
const DIRECTORY: &str = "mesonet";

/// What the names of links begin with; those of maps are in capitals.
const LINK_PREFIX: &str = "mesonet_";

/// A hook's link while it replaces the one before. The file system takes no dots in names.
const NEW_SUFFIX: &str = "_new";

/// Loads the programs and attaches them to a cgroup, beside those of the process before, which go then: no connection
/// is made in between without one of them. Maps that are there are taken over with what they hold.
pub(super) fn attach(bpffs: &Path, cgroup: &Path) -> Result<(Maps, Origins), EbpfError> {
    let pins = bpffs.join(DIRECTORY).join(LAYOUT);
    fs::create_dir_all(&pins).map_err(|source| EbpfError::Pins { path: pins.clone(), source })?;
    let cgroup_file =
        File::open(cgroup).map_err(|source| EbpfError::Cgroup { path: cgroup.to_path_buf(), source })?;
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, pins.join(name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(EbpfError::Load)?;
    for hook in HOOKS {
        attach_hook(&mut ebpf, hook, &cgroup_file, &pins)?;
    }
    remove_other_layouts(&bpffs.join(DIRECTORY));
    let mut map = |name: &'static str| ebpf.take_map(name).ok_or(EbpfError::NoMap(name));
    let maps = Maps::new(map("SERVICES")?, map("SLOTS")?, map("MEMBERS")?)?;
    let origins: Map = map("ORIGINS")?;
    Ok((maps, WordMap::new(origins)?))
}

/// Removes everything of mesonet from the kernel. When it returns, no program is run any more.
///
/// # Errors
/// When a pin cannot be removed.
pub fn cleanup(bpffs: &Path) -> io::Result<()> {
    let layouts = match fs::read_dir(bpffs.join(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for layout in layouts {
        remove_layout(&layout?.path())?;
    }
    fs::remove_dir_all(bpffs.join(DIRECTORY))
}

/// Removes the pins of a layout. Its programs end first: the kernel ends a link that has lost its last name at a time
/// of its own choice, and until then connections would still be sent to endpoints.
fn remove_layout(path: &Path) -> io::Result<()> {
    for pin in fs::read_dir(path)? {
        let pin = pin?.path();
        let is_link =
            pin.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(LINK_PREFIX));
        if is_link && let Err(error) = bpf_call::detach_pinned(&pin) {
            tracing::warn!(%error, path = %pin.display(), "Cannot end a program at once");
        }
    }
    fs::remove_dir_all(path)
}

fn attach_hook(ebpf: &mut Ebpf, hook: &'static str, cgroup: &File, pins: &Path) -> Result<(), EbpfError> {
    let program: &mut CgroupSockAddr = ebpf
        .program_mut(hook)
        .ok_or(EbpfError::NoHook(hook))?
        .try_into()
        .map_err(|source| EbpfError::Attach { hook, source })?;
    program.load().map_err(|source| EbpfError::Attach { hook, source })?;
    let id = program.attach(cgroup, LINK_MODE).map_err(|source| EbpfError::Attach { hook, source })?;
    let link = program.take_link(id).map_err(|source| EbpfError::Attach { hook, source })?;
    let link: FdLink = link.try_into().map_err(|_| EbpfError::NoHook(hook))?;
    let path = pins.join(hook);
    let new = pins.join(format!("{hook}{NEW_SUFFIX}"));
    // Left by a process that ended at this point.
    let _ = fs::remove_file(&new);
    let pinned: PinnedLink = link.pin(&new).map_err(|source| EbpfError::Pin { path: new.clone(), source })?;
    // The old link ends with its last name.
    fs::rename(&new, &path).map_err(|source| EbpfError::Pins { path, source })?;
    drop(pinned);
    Ok(())
}

/// What other versions have left goes once this one is in effect.
fn remove_other_layouts(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != LAYOUT) {
        let path: PathBuf = entry.path();
        match remove_layout(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "Removed the programs of another version"),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "Cannot remove the programs of another version");
            }
        }
    }
}
