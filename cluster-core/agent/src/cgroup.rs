//! Control groups: what a task may use, and how it is told apart from the rest.
//!
//! Every task has a group of its own in each hierarchy that the agent may write: the one of version 2 (`cpu.weight`,
//! `memory.max`, and `cgroup.kill` even without controllers), and `cpu` and `memory` of version 1 where they are
//! mounted. As in Mesos, cpus are shares and not a ceiling, and memory is a ceiling.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mesonet_model::Resources;
use rustix::fs::Access;
use rustix::io::Errno;
use uuid::Uuid;

use crate::CgroupMode;
use crate::checkpoint::{self, FileError};

/// The parent of the tasks' groups, below the agent's own group.
const PARENT: &str = "mesonet";

/// No task gets less, as in Mesos: a shell alone needs some.
const MEMORY_BYTES_MIN: u64 = 32 << 20;

/// Weight of one cpu in version 2, where 1 to 10,000 are possible.
const WEIGHT_PER_CPU: f64 = 100.0;

/// Weight of one cpu in version 1, where at least 2 is needed.
const SHARES_PER_CPU: f64 = 1024.0;

/// How old a group without processes is before it is nobody's. Another agent on the same machine may have made it for a
/// task that it is about to start, which takes it less than a second.
const ABANDONED_AFTER: Duration = Duration::from_secs(60 * 60);

/// Where tasks' groups are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    parents: Vec<PathBuf>,
}

impl Hierarchies {
    /// Finds out where the agent may make groups, and says so in the log.
    pub(crate) fn detect(mode: &CgroupMode) -> Self {
        let candidates = match mode {
            CgroupMode::Off => Vec::new(),
            CgroupMode::Below(parent) => vec![parent.clone()],
            CgroupMode::Auto => own_groups().unwrap_or_default(),
        };
        let (found, refusals) = Self::below(&candidates);
        let limits_memory = found.has(&["memory.max", "memory.limit_in_bytes"]);
        let limits_cpus = found.has(&["cpu.weight", "cpu.shares"]);
        match mode {
            CgroupMode::Off => tracing::info!("Tasks are not limited, as configured"),
            CgroupMode::Auto | CgroupMode::Below(_) if limits_memory && limits_cpus => {
                tracing::info!(groups = ?found.parents, "Tasks are limited by control groups");
            }
            CgroupMode::Auto | CgroupMode::Below(_) => tracing::warn!(
                limits_memory,
                limits_cpus,
                groups = ?found.parents,
                refusals = ?refusals.iter().map(|error| checkpoint::in_full(error)).collect::<Vec<_>>(),
                "Tasks are not fully limited: the agent may not use the control groups that this takes"
            ),
        }
        found
    }

    /// Those of some groups in which the agent may make groups, each once: a hierarchy may be mounted at several places.
    /// Says also what was refused.
    fn below(groups: &[PathBuf]) -> (Self, Vec<FileError>) {
        let mut known = BTreeSet::new();
        let mut is_new = |parent: &PathBuf| {
            fs::metadata(parent).is_ok_and(|parent| known.insert((parent.dev(), parent.ino())))
        };
        let (mut parents, mut refusals) = (Vec::new(), Vec::new());
        for own in groups {
            match prepare(own, is_delegated) {
                Ok((parent, refused)) => {
                    parents.extend(Some(parent).filter(&mut is_new));
                    refusals.extend(refused);
                }
                Err(refused) => refusals.push(refused),
            }
        }
        (Self { parents }, refusals)
    }

    /// Whether tasks' groups have one of the files. Every group but the root has the files of its controllers, and
    /// those of a parent are the parent's own.
    fn has(&self, files: &[&str]) -> bool {
        // Other agents that start at this moment have others.
        let probe = Uuid::from_u128(std::process::id().into()).to_string();
        self.parents.iter().any(|parent| {
            let group = parent.join(&probe);
            let made = fs::create_dir(&group);
            let has = files.iter().any(|file| group.join(file).exists());
            if made.is_ok() {
                let _ = fs::remove_dir(&group);
            }
            has
        })
    }

    /// Removes groups that agents and supervisors have left that were killed. The kernel keeps those that have processes.
    pub(crate) fn sweep(&self, now: SystemTime) {
        let mut swept = 0;
        for parent in &self.parents {
            let entries = fs::read_dir(parent).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| is_abandoned(entry, now)) {
                swept += u32::from(fs::remove_dir(entry.path()).is_ok());
            }
        }
        if swept > 0 {
            tracing::info!(swept, "Control groups that nobody used were removed");
        }
    }

    /// Makes a task's groups and sets their limits.
    pub(crate) fn create(&self, container: Uuid, resources: &Resources) -> Result<Vec<PathBuf>, FileError> {
        let mut groups = Vec::with_capacity(self.parents.len());
        for parent in &self.parents {
            let group = parent.join(container.to_string());
            let made = fs::create_dir(&group).map_err(FileError::at("create control group", &group));
            groups.push(group.clone());
            if let Err(error) = made.and_then(|()| limit(&group, resources)) {
                remove(&groups);
                return Err(error);
            }
        }
        Ok(groups)
    }
}

/// Whether a directory is named as a task's group, and so old that nobody is about to use it.
fn is_abandoned(entry: &fs::DirEntry, now: SystemTime) -> bool {
    let is_group = entry.file_name().to_str().is_some_and(|name| Uuid::try_parse(name).is_ok());
    let made = || entry.metadata().ok()?.modified().ok();
    is_group && made().is_some_and(|made| now.duration_since(made).is_ok_and(|age| age >= ABANDONED_AFTER))
}

/// Sets what the group has files for.
fn limit(group: &Path, resources: &Resources) -> Result<(), FileError> {
    let mebibytes = u64::try_from(resources.mem.thousandths() / 1000).unwrap_or(0);
    let memory = (mebibytes > 0).then(|| mebibytes.saturating_mul(1 << 20).max(MEMORY_BYTES_MIN));
    let cpus = resources.cpus.as_f64();
    let limits = [
        ("memory.max", memory),
        ("memory.limit_in_bytes", memory),
        ("cpu.weight", Some((cpus * WEIGHT_PER_CPU).clamp(1.0, 10_000.0) as u64)),
        ("cpu.shares", Some((cpus * SHARES_PER_CPU).max(2.0) as u64)),
    ];
    for (file, value) in limits {
        let path = group.join(file);
        if let Some(value) = value
            && path.exists()
        {
            fs::write(&path, value.to_string()).map_err(FileError::at("write", &path))?;
        }
    }
    Ok(())
}

/// The agent's own groups in the hierarchies of interest.
fn own_groups() -> io::Result<Vec<PathBuf>> {
    Ok(groups_in(&fs::read_to_string("/proc/self/mountinfo")?, &fs::read_to_string("/proc/self/cgroup")?))
}

/// Joins the mount points of the hierarchies with the paths of the process' groups in them.
fn groups_in(mounts: &str, groups: &str) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mount = Path::new(place.split(' ').nth(4)?);
            let mut kind = kind.split(' ');
            let controllers = match kind.next()? {
                "cgroup2" => "",
                "cgroup" => kind.nth(1)?.split(',').find(|option| matches!(*option, "cpu" | "memory"))?,
                _ => return None,
            };
            let own = groups.lines().find_map(|line| {
                let (names, path) = line.split_once(':')?.1.split_once(':')?;
                names.split(',').any(|name| name == controllers).then_some(path)
            })?;
            Some(mount.join(own.trim_start_matches('/')))
        })
        .collect()
}

/// Makes the parent of the tasks' groups, and hands it the controllers that there are. Says also what was refused of
/// that. Fails if the agent may not make groups in it.
///
/// Nothing is handed on of a group of version 2 with processes. So the service manager may have put the agent into a
/// group of its own within the one that is left to it: then the tasks' groups are made beside the agent's.
fn prepare(own: &Path, is_delegated: impl Fn(&Path) -> bool) -> Result<(PathBuf, Vec<FileError>), FileError> {
    let mut place = own;
    let (handed_on, mut refusals) = hand_on(own);
    if let Some(above) = own.parent()
        && is_delegated(above)
        && is_free(above)
        && !offered(above).is_subset(&handed_on)
    {
        place = above;
        refusals = hand_on(above).1;
    }
    let parent = place.join(PARENT);
    match fs::create_dir(&parent) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(FileError::at("create control group", &parent)(error));
        }
        Ok(()) | Err(_) => {}
    }
    // An agent of another user may have made it.
    rustix::fs::access(&parent, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| FileError::at("use control group", &parent)(error.into()))?;
    refusals.extend(hand_on(&parent).1);
    Ok((parent, refusals))
}

/// Hands a group's controllers on to the groups in it. Says which, and what was refused.
///
/// The kernel refuses `memory` to a group with processes, but not `cpu` alone: that makes the group the root of threaded
/// ones, and none in it may have processes any more. So it is left alone.
fn hand_on(group: &Path) -> (BTreeSet<String>, Vec<FileError>) {
    let file = group.join("cgroup.subtree_control");
    let offered = offered(group);
    if !offered.is_empty() && is_occupied(group) {
        return (BTreeSet::new(), vec![FileError::at("write", &file)(Errno::BUSY.into())]);
    }
    let (mut handed_on, mut refusals) = (BTreeSet::new(), Vec::new());
    for controller in offered {
        match fs::write(&file, format!("+{controller}")) {
            Ok(()) => {
                handed_on.insert(controller);
            }
            Err(error) => refusals.push(FileError::at("write", &file)(error)),
        }
    }
    (handed_on, refusals)
}

/// The controllers of a group that limits take; none where it is no group of version 2.
fn offered(group: &Path) -> BTreeSet<String> {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let wanted = available.split_whitespace().filter(|name| matches!(*name, "cpu" | "memory"));
    wanted.map(str::to_owned).collect()
}

/// Whether a group has processes of its own, or is threaded and does not say. That does not matter to the root of all,
/// which alone has no type.
fn is_occupied(group: &Path) -> bool {
    group.join("cgroup.type").exists()
        && !fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty())
}

/// Whether a group has no processes of its own and this process may make groups in it.
fn is_free(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty())
        && rustix::fs::access(group, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// Whether systemd leaves a group to the service in it. All others but those below are its own, and root could write
/// to them.
fn is_delegated(group: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(group, *name, &mut value) == Ok(1) && value == *b"1"
    })
}

// === A task's groups ===

/// Kills everything in the groups, where the kernel offers that.
pub(crate) fn kill(groups: &[PathBuf]) {
    for group in groups {
        // Version 1 has no such file; the supervisor kills its children one by one as well.
        let _ = fs::OpenOptions::new()
            .write(true)
            .open(group.join("cgroup.kill"))
            .and_then(|mut file| io::Write::write_all(&mut file, b"1"));
    }
}

/// Whether the kernel has killed a process of the groups for want of memory.
pub(crate) fn is_out_of_memory(groups: &[PathBuf]) -> bool {
    let files =
        groups.iter().flat_map(|group| ["memory.events", "memory.oom_control"].map(|file| group.join(file)));
    files.filter_map(|file| fs::read_to_string(file).ok()).any(|text| {
        text.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
    })
}

/// Removes the groups, which must be empty.
pub(crate) fn remove(groups: &[PathBuf]) {
    for group in groups {
        // What cannot be removed is empty and costs some kernel memory; the next run of the task has other groups.
        let _ = fs::remove_dir(group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_groups_are_found_in_both_versions() {
        let mounts = "\
25 20 0:22 / /proc rw,nosuid - proc proc rw
30 20 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw
31 20 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 20 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 20 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
34 20 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
";
        let groups = "9:name=systemd:/\n4:memory:/one/two\n1:cpu:/\n0::/unit.service\n";
        let expected =
            ["/sys/fs/cgroup/unified/unit.service", "/sys/fs/cgroup/cpu/", "/sys/fs/cgroup/memory/one/two"];
        assert_eq!(groups_in(mounts, groups), expected.map(PathBuf::from));
    }

    #[test]
    fn groups_that_nobody_uses_are_swept_and_others_are_not() {
        let parent = tempfile::tempdir().expect("a directory");
        let names = ["4749fba6-9017-431f-a077-4aaa73be67f2", "6e523b72-742a-44ef-bbcd-70ed7e7cf23b", "other"];
        for name in names {
            fs::create_dir(parent.path().join(name)).expect("made");
        }
        // As little as the kernel removes a group with processes is a directory removed that is not empty.
        fs::create_dir(parent.path().join(names[1]).join("busy")).expect("made");
        let hierarchies = Hierarchies { parents: vec![parent.path().to_owned()] };
        let left =
            || -> Vec<&str> { names.into_iter().filter(|name| parent.path().join(name).exists()).collect() };
        hierarchies.sweep(SystemTime::now() + ABANDONED_AFTER / 2);
        assert_eq!(left(), names);
        hierarchies.sweep(SystemTime::now() + ABANDONED_AFTER);
        assert_eq!(left(), names[1..]);
    }

    #[test]
    fn a_hierarchy_that_is_mounted_twice_gets_each_group_once() {
        let mounts = tempfile::tempdir().expect("a directory");
        let [first, second] = ["first", "second"].map(|name| mounts.path().join(name));
        fs::create_dir(&first).expect("made");
        std::os::unix::fs::symlink(&first, &second).expect("linked");
        let (hierarchies, _) = Hierarchies::below(&[first.clone(), second]);
        let container = Uuid::from_u128(7);
        let groups = hierarchies.create(container, &Resources::default()).expect("makes groups");
        assert_eq!(groups, [first.join(PARENT).join(container.to_string())]);
    }

    /// A service's group with the agent's in it, as files.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().expect("a directory"));
            fs::create_dir_all(tree.agent()).expect("made");
            tree
        }

        fn service(&self) -> PathBuf {
            self.0.path().join("service")
        }

        fn agent(&self) -> PathBuf {
            self.service().join("agent")
        }

        fn has(group: &Path, controllers: &str, processes: &str) {
            fs::write(group.join("cgroup.controllers"), controllers).expect("written");
            fs::write(group.join("cgroup.procs"), processes).expect("written");
            fs::write(group.join("cgroup.type"), "domain\n").expect("written");
        }

        fn is_as_it_was(group: &Path) -> bool {
            !group.join("cgroup.subtree_control").exists()
        }
    }

    #[test]
    fn tasks_are_beside_an_agent_in_a_group_of_its_own() {
        // At the first start nothing has been handed on to it.
        for controllers in ["\n", "cpu\n", "cpu memory\n"] {
            let tree = Tree::new();
            Tree::has(&tree.service(), "cpu io memory\n", "");
            Tree::has(&tree.agent(), controllers, "7\n");
            let (parent, refusals) = prepare(&tree.agent(), |_| true).expect("prepared");
            assert_eq!((parent, refusals.len()), (tree.service().join(PARENT), 0));
            let handed_on = fs::read_to_string(tree.service().join("cgroup.subtree_control"));
            // The last of two.
            assert_eq!(handed_on.expect("written"), "+memory");
            assert!(Tree::is_as_it_was(&tree.agent()), "{controllers}");
        }
    }

    #[test]
    fn tasks_are_below_the_agent_if_the_group_above_is_not_for_them() {
        for (is_delegated, processes) in [(false, ""), (true, "5\n")] {
            // The kernel would take the first, and then let no process into a group below.
            for controllers in ["cpu\n", "cpu memory\n"] {
                let tree = Tree::new();
                Tree::has(&tree.service(), controllers, processes);
                Tree::has(&tree.agent(), controllers, "7\n");
                let (parent, refused) = prepare(&tree.agent(), |_| is_delegated).expect("prepared");
                assert_eq!(parent, tree.agent().join(PARENT));
                for group in [tree.service(), tree.agent()] {
                    assert!(Tree::is_as_it_was(&group), "{controllers}");
                }
                let file = tree.agent().join("cgroup.subtree_control");
                let refused: Vec<_> = refused.iter().map(|error| checkpoint::in_full(error)).collect();
                let expected = format!("cannot write {}: Device or resource busy", file.display());
                assert_eq!(refused, [expected + " (os error 16)"]);
            }
        }
    }

    #[test]
    fn tasks_are_in_a_group_that_hands_on_all_that_there_is() {
        // One without processes, and the root of all.
        for is_root in [false, true] {
            let tree = Tree::new();
            Tree::has(&tree.service(), "cpu memory\n", "");
            Tree::has(&tree.agent(), "cpu memory\n", if is_root { "7\n" } else { "" });
            if is_root {
                fs::remove_file(tree.agent().join("cgroup.type")).expect("removed");
            }
            let (parent, refused) = prepare(&tree.agent(), |_| true).expect("prepared");
            assert_eq!((parent, refused.len()), (tree.agent().join(PARENT), 0));
            assert!(Tree::is_as_it_was(&tree.service()));
            let handed_on = fs::read_to_string(tree.agent().join("cgroup.subtree_control"));
            // The last of two.
            assert_eq!(handed_on.expect("written"), "+memory");
        }
    }

    #[test]
    fn joint_controllers_of_version_1_are_found() {
        let mounts = "31 20 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        assert_eq!(groups_in(mounts, "3:cpu,cpuacct:/a\n"), [PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/a")]);
    }
}
