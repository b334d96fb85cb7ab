//! The programs in the kernel: loaded, attached to interfaces, and pinned, so that they outlive this process.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::ProgramArray;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, ProgramError, ProgramFd, SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use mesonet_ebpf_abi::{LAYOUT, NextProgram};

use super::interfaces::{self, Interface, Link};
use super::{Attached, PacketError, PacketHook, PacketMode, PacketSettings, maps};
use crate::bpf_call;
use crate::pinning::{self, DIRECTORY, Identity, PinningError};
use crate::pins::Pins;

/// The programs, built from ebpf/programs by ebpf/build.sh.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/object/packet.o");

/// How often the kernel is asked to take a program.
const LOAD_ATTEMPTS: u32 = 10;

/// Where everything of packet balancing is, below the directory of the layout. The number is that of the form of its own
/// maps.
const FORM: &str = "packet-5";

/// What the directories of all forms begin with.
const FORMS: &str = "packet";

/// What the names of links begin with.
const LINKS: &str = "mesonet_";

/// Programs that others go on with: for interfaces like Ethernet, and for those without link headers.
const NEXT: [(NextProgram, [&str; 2]); 4] = [
    (NextProgram::In, ["mesonet_in", "mesonet_tunnel_in"]),
    (NextProgram::Encapsulate, ["mesonet_encapsulate", "mesonet_tunnel_encapsulate"]),
    (NextProgram::Decapsulate, ["mesonet_decapsulate", "mesonet_tunnel_decapsulate"]),
    (NextProgram::Refuse, ["mesonet_refuse", "mesonet_tunnel_refuse"]),
];

/// The programs, and where they are pinned.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) directory: PathBuf,
    /// Tells others that they are in use.
    pub(super) hold: File,
}

/// Loads the programs. Maps that are there are taken over with what they hold.
pub(super) fn load(bpffs: &Path) -> Result<Loaded, PacketError> {
    let directory = directory(bpffs);
    let hold = hold(&directory)?;
    let mut loader = EbpfLoader::new();
    for name in maps::NAMES {
        loader.map_pin_path(name, directory.join(name));
    }
    let mut ebpf = loader.load(OBJECT).map_err(PacketError::Load)?;
    // They answer questions, too.
    load_next(&mut ebpf, true)?;
    Ok(Loaded { ebpf, directory, hold })
}

/// Makes a directory for pins, unless it is there, and has it left alone by [`remove_unused`] for as long as the file is open.
pub(super) fn hold(pins: &Path) -> Result<File, PinningError> {
    loop {
        pinning::make_directory(pins)?;
        let failed = pinning::directory_error(pins);
        let locked = File::open(pins).and_then(|file| file.lock_shared().map(|()| file));
        match locked.and_then(|file| Ok((Identity::from(file.metadata()?), file))) {
            // Who held it before may have removed it.
            Ok((its, file)) => match Identity::of(pins) {
                Ok(found) if found == its => return Ok(file),
                _ => {}
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Takes the programs of processes that have ended away from all interfaces. One that runs may need those of other versions, too.
pub(super) fn remove_unused(bpffs: &Path) -> io::Result<()> {
    let mut unused = Vec::new();
    for pins in older(bpffs).into_iter().chain([directory(bpffs)]) {
        let directory = match File::open(&pins) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        match directory.try_lock() {
            Ok(()) => unused.push((pins, directory)),
            Err(TryLockError::WouldBlock) => {
                tracing::info!(path = %pins.display(), "Another daemon balances packets");
                return Ok(());
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    for (pins, _locked) in unused {
        detach_all(&pins);
        fs::remove_dir_all(&pins)?;
        let _ = pins.parent().map(fs::remove_dir);
        tracing::info!(path = %pins.display(), "Took the programs for packets away that a daemon had left");
    }
    Ok(())
}

/// Loads the programs of tc for packets that come in through interfaces of a kind, and has them go on with each other.
fn load_next(ebpf: &mut Ebpf, is_ethernet: bool) -> Result<(), PacketError> {
    let of_kind = usize::from(!is_ethernet);
    let mut loaded: Vec<(u32, ProgramFd)> = Vec::new();
    for (next, names) in NEXT {
        let name = names[of_kind];
        load_classifier(ebpf, name)?;
        let failed = |source| PacketError::Program { hook: name, source };
        let program = classifier(ebpf, name)?.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(failed)?;
        loaded.push((next as u32 + u32::from(!is_ethernet), program));
    }
    let map = ebpf.map_mut("PROGRAMS").ok_or(PacketError::NoMap("PROGRAMS"))?;
    let mut programs = ProgramArray::try_from(map).map_err(PacketError::Map)?;
    loaded.iter().try_for_each(|(at, program)| programs.set(*at, program, 0)).map_err(PacketError::Map)
}

fn directory(bpffs: &Path) -> PathBuf {
    bpffs.join(DIRECTORY).join(LAYOUT).join(FORM)
}

/// The directories of versions whose maps have another form.
pub(super) fn older(bpffs: &Path) -> Vec<PathBuf> {
    let inside = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_packets =
        |path: &PathBuf| name_of(path).starts_with(FORMS) && path.is_dir() && *path != directory(bpffs);
    inside(bpffs.join(DIRECTORY)).flat_map(inside).filter(of_packets).collect()
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Ends the programs that are pinned there.
pub(super) fn detach_all(pins: &Path) {
    remove_links(pins, |_| true);
}

/// Ends those that meet packets before any of tc does.
pub(super) fn detach_early(pins: &Path) {
    let beginning = PacketHook::Xdp.program();
    remove_links(pins, |path| name_of(path).starts_with(beginning));
}

/// Makes what programs of another version know nobody's. They go on as long as they are attached.
pub(super) fn disown(pins: &Path) {
    match fs::remove_file(pins.join(maps::SERVICES)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %pins.display(), "Cannot remove what another version has left");
        }
        _ => {}
    }
}

/// Forgets what the programs of another version know.
pub(super) fn forget(pins: &Path) {
    match fs::remove_dir_all(pins) {
        Ok(()) => {
            // The directory of another layout, if nothing else is in it.
            let _ = pins.parent().map(fs::remove_dir);
            tracing::info!(path = %pins.display(), "Replaced the programs of another version");
        }
        Err(error) => {
            tracing::warn!(%error, path = %pins.display(), "Cannot remove what another version has left");
        }
    }
}

/// Loads a program, if it is not yet. The kernel takes some tenths of a second to look at it.
pub(super) fn load_one(ebpf: &mut Ebpf, hook: PacketHook) -> Result<(), PacketError> {
    match hook {
        PacketHook::Xdp => {
            let program = xdp(ebpf)?;
            insist(hook.program(), || program.load())
        }
        PacketHook::In | PacketHook::Out | PacketHook::TunnelIn | PacketHook::TunnelOut => {
            load_classifier(ebpf, hook.program())
        }
    }
}

fn load_classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<(), PacketError> {
    let program = classifier(ebpf, name)?;
    insist(name, || program.load())
}

/// The kernel stops to look at a program when a signal comes, and wants to be asked again.
fn insist(name: &'static str, mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), PacketError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match load() {
            Err(ProgramError::AlreadyLoaded) => return Ok(()),
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.kind() == io::ErrorKind::WouldBlock && attempts < LOAD_ATTEMPTS => {}
            other => return other.map_err(|source| PacketError::Program { hook: name, source }),
        }
    }
}

/// Attaches the programs to interfaces, in the place of those of the process before: no packet meets none of them.
/// Takes them away from interfaces that are not named any more. Also tells what is pinned.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    directory: &Path,
    older: &[PathBuf],
    settings: &PacketSettings,
) -> Result<(Vec<Attached>, Pins), PacketError> {
    let mut pins = Pins::new(directory);
    maps::NAMES.iter().try_for_each(|name| pins.keep(name))?;
    let mut attached = Vec::new();
    for name in &settings.interfaces {
        attached.push(attach_one(ebpf, (directory, &mut pins), older, name, settings.mode)?);
    }
    let kept: Vec<PathBuf> = pins.names(LINKS).map(|name| directory.join(name)).collect();
    remove_links(directory, |path| !kept.contains(path));
    Ok((attached, pins))
}

/// Attaches the programs to an interface.
pub(super) fn attach_one(
    ebpf: &mut Ebpf,
    (directory, pins): (&Path, &mut Pins),
    older: &[PathBuf],
    name: &str,
    mode: PacketMode,
) -> Result<Attached, PacketError> {
    let interface =
        interfaces::find(name).map_err(|source| PacketError::Interface { name: name.to_owned(), source })?;
    if interface.link == Link::Loopback {
        return Err(PacketError::Loopback(name.to_owned()));
    }
    let (mode, reason) = attach_early(ebpf, (directory, older), name, &interface, mode)?;
    let is_ethernet = interface.link == Link::Ethernet;
    let out = if is_ethernet { PacketHook::Out } else { PacketHook::TunnelOut };
    let at = Attachment { pins: directory, older, name, index: interface.index };
    at.classifier(ebpf, out, TcAttachType::Egress)?;
    load_next(ebpf, is_ethernet)?;
    // It also meets what XDP leaves.
    let incoming = if is_ethernet { PacketHook::In } else { PacketHook::TunnelIn };
    at.classifier(ebpf, incoming, TcAttachType::Ingress)?;
    let early = (mode != PacketMode::Tc).then_some(PacketHook::Xdp);
    for hook in [out, incoming].into_iter().chain(early) {
        pins.keep(&link_name(hook, interface.index))?;
    }
    let is_way_of_xdp = is_way_of_xdp(mode, interface.index);
    Ok(Attached { name: name.to_owned(), index: interface.index, mode, reason, is_way_of_xdp })
}

/// Whether XDP can send packets on through an interface.
pub(super) fn is_way_of_xdp(mode: PacketMode, index: u32) -> bool {
    // What the kernel does not say is not relied upon.
    mode == PacketMode::Xdp && interfaces::takes_frames(index).unwrap_or(false)
}

/// How many programs are not attached any more to an interface that is there.
pub(super) fn detached(pins: &Pins, attached: &Attached) -> usize {
    let is_its = |name: &&str| index_of(name) == Some(attached.index);
    let is_attached = |name: &str| pins.target(name).is_ok_and(|target| target == u64::from(attached.index));
    let detached = pins.names(LINKS).filter(is_its).filter(|name| !is_attached(name)).count();
    let is_there = || interfaces::index(&attached.name).is_ok_and(|index| index == attached.index);
    // With an interface, its programs go.
    if detached > 0 && is_there() { detached } else { 0 }
}

/// Ends what is attached to an interface that is gone, or has another name.
pub(super) fn leave(directory: &Path, pins: &mut Pins, index: u32) {
    pins.forget(|name| name.starts_with(LINKS) && index_of(name) == Some(index));
    for hook in PacketHook::ALL {
        let path = directory.join(link_name(hook, index));
        // With the interface, the kernel has ended it already.
        let _ = bpf_call::detach_pinned(&path);
        let _ = fs::remove_file(&path);
    }
}

/// The name that a link is pinned by. The file system takes no dots, which names of interfaces may have.
fn link_name(hook: PacketHook, index: u32) -> String {
    format!("{}_{index}", hook.program())
}

/// The number of a link's interface.
fn index_of(link: &str) -> Option<u32> {
    link.rsplit('_').next()?.parse().ok()
}

/// Attaches XDP where that is told or the best.
fn attach_early(
    ebpf: &mut Ebpf,
    (pins, older): (&Path, &[PathBuf]),
    name: &str,
    interface: &Interface,
    wanted: PacketMode,
) -> Result<(PacketMode, String), PacketError> {
    let at = Attachment { pins, older, name, index: interface.index };
    let is_ethernet = interface.link == Link::Ethernet;
    if interface.has_generic_xdp != (wanted == PacketMode::XdpGeneric) {
        at.end_xdp();
    }
    let reason = match wanted {
        PacketMode::Xdp | PacketMode::XdpGeneric => {
            at.xdp(ebpf, wanted)?;
            return Ok((wanted, "as told".to_owned()));
        }
        PacketMode::Tc => "as told".to_owned(),
        PacketMode::Auto if !is_ethernet => "it has no link headers".to_owned(),
        PacketMode::Auto if interface.is_virtual => {
            "on virtual interfaces packets may come without checksums, which XDP leaves to tc".to_owned()
        }
        PacketMode::Auto => match at.xdp(ebpf, PacketMode::Xdp) {
            Ok(()) => return Ok((PacketMode::Xdp, "the driver takes it".to_owned())),
            Err(error) => format!("the driver refuses XDP: {}", crate::balancer::error_text(&error)),
        },
    };
    Ok((PacketMode::Tc, reason))
}

/// A place for programs.
struct Attachment<'a> {
    pins: &'a Path,
    /// Where other versions have theirs.
    older: &'a [PathBuf],
    name: &'a str,
    index: u32,
}

impl Attachment<'_> {
    fn pin(&self, hook: PacketHook) -> PathBuf {
        self.pins.join(link_name(hook, self.index))
    }

    fn classifier(&self, ebpf: &mut Ebpf, hook: PacketHook, way: TcAttachType) -> Result<(), PacketError> {
        let path = self.pin(hook);
        let failed =
            |source| PacketError::Attach { hook: hook.program(), name: self.name.to_owned(), source };
        load_one(ebpf, hook)?;
        let program = classifier(ebpf, hook.program())?;
        if let Some(old) = pinned(&path).and_then(|link| SchedClassifierLink::try_from(link).ok())
            && program.attach_to_link(old).is_ok()
        {
            return Ok(());
        }
        // Before what another version has left: what this one does not know of is that one's.
        let older = self.older_classifier(&path);
        let order = older.as_ref().and_then(|link| LinkOrder::before_link(link).ok()).unwrap_or_default();
        let options = TcAttachOptions::TcxOrder(order);
        let id = program.attach_with_options(self.name, way, options).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        pin(link.try_into().map_err(|_| PacketError::NoProgram(hook.program()))?, path)
    }

    /// What another version has left there.
    fn older_classifier(&self, path: &Path) -> Option<SchedClassifierLink> {
        let name = path.file_name()?;
        let mut links = self.older.iter().filter_map(|older| pinned(&older.join(name)));
        links.find_map(|link| SchedClassifierLink::try_from(link).ok())
    }

    /// Where XDP is attached in another way than is wanted, which it would keep.
    fn end_xdp(&self) {
        let path = self.pin(PacketHook::Xdp);
        let name = path.file_name().unwrap_or_default();
        for path in self.older.iter().map(|older| older.join(name)).chain([path.clone()]) {
            // That there is none is as good. tc has the packets meanwhile.
            let _ = bpf_call::detach_pinned(&path).and_then(|()| fs::remove_file(&path));
        }
    }

    fn xdp(&self, ebpf: &mut Ebpf, mode: PacketMode) -> Result<(), PacketError> {
        let path = self.pin(PacketHook::Xdp);
        let failed = |source| PacketError::Attach {
            hook: PacketHook::Xdp.program(),
            name: self.name.to_owned(),
            source,
        };
        load_one(ebpf, PacketHook::Xdp)?;
        let program = xdp(ebpf)?;
        if let Some(old) = pinned(&path).and_then(|link| XdpLink::try_from(link).ok())
            && program.attach_to_link(old).is_ok()
        {
            return Ok(());
        }
        // An interface has no room for two.
        for older in self
            .older
            .iter()
            .map(|older| older.join(self.pin(PacketHook::Xdp).file_name().unwrap_or_default()))
        {
            if let Some(old) = pinned(&older).and_then(|link| XdpLink::try_from(link).ok())
                && let Ok(id) = program.attach_to_link(old)
            {
                let link = program.take_link(id).map_err(failed)?;
                fs::remove_file(&older).map_err(pinning::directory_error(&older))?;
                return pin(
                    link.try_into().map_err(|_| PacketError::NoProgram(PacketHook::Xdp.program()))?,
                    path,
                );
            }
        }
        let mode = if mode == PacketMode::XdpGeneric { XdpMode::Skb } else { XdpMode::Driver };
        let id = program.attach_to_if_index(self.index, mode).map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        pin(link.try_into().map_err(|_| PacketError::NoProgram(PacketHook::Xdp.program()))?, path)
    }
}

/// The link that a process before has left.
fn pinned(path: &Path) -> Option<FdLink> {
    PinnedLink::from_pin(path).ok().map(FdLink::from)
}

fn pin(link: FdLink, path: PathBuf) -> Result<(), PacketError> {
    // That of an interface that is gone, whose number another one has.
    let _ = fs::remove_file(&path);
    pinning::pin(link, &path)?;
    Ok(())
}

/// Links of interfaces and modes that are not wanted any more end with their names.
fn remove_links(pins: &Path, is_unwanted: impl Fn(&PathBuf) -> bool) {
    let Ok(entries) = fs::read_dir(pins) else { return };
    let is_link = |path: &PathBuf| name_of(path).starts_with(LINKS) && is_unwanted(path);
    for path in entries.flatten().map(|entry| entry.path()).filter(is_link) {
        if let Err(error) = bpf_call::detach_pinned(&path).and_then(|()| fs::remove_file(&path)) {
            tracing::warn!(%error, path = %path.display(), "Cannot take a program away from an interface");
        }
    }
}

/// Takes the programs away from all interfaces; what they know goes, too.
pub(super) fn remove_all(bpffs: &Path) -> io::Result<()> {
    for pins in older(bpffs).into_iter().chain([directory(bpffs)]) {
        detach_all(&pins);
        match fs::remove_dir_all(pins) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn classifier<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, PacketError> {
    let program = ebpf.program_mut(name).ok_or(PacketError::NoProgram(name))?;
    program.try_into().map_err(|source: ProgramError| PacketError::Program { hook: name, source })
}

pub(super) fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, PacketError> {
    let name = PacketHook::Xdp.program();
    let program = ebpf.program_mut(name).ok_or(PacketError::NoProgram(name))?;
    program.try_into().map_err(|source: ProgramError| PacketError::Program { hook: name, source })
}
