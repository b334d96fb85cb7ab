//! What takes rights: other users and control groups.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use mesonet_agent::CgroupMode;
use mesonet_model::{StatusReason, TaskState};

use crate::Case;
use crate::cases::{CLEAN_DAEMON, directory};
use crate::node::{self, Node, is_alive, kill_9, shell, wait_for};

/// What needs rights, and which.
pub const ALL: &[Case] = &[
    (
        "a_task_of_another_user_is_that_user_alone",
        Some("needs root"),
        a_task_of_another_user_is_that_user_alone,
    ),
    (
        "too_much_memory_has_its_own_reason",
        Some("needs root and a memory controller"),
        too_much_memory_has_its_own_reason,
    ),
    (
        "control_groups_find_what_nothing_else_finds",
        Some("needs root and control groups of version 2"),
        control_groups_find_what_nothing_else_finds,
    ),
    (
        "a_full_disk_stops_no_task_and_fails_launches",
        Some("needs root"),
        a_full_disk_stops_no_task_and_fails_launches,
    ),
];

fn a_task_of_another_user_is_that_user_alone() {
    let directory = directory();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).expect("opens the way");
    let mut node = Node::start(directory.path());
    let mut spec = shell("t1", "id -un; id -Gn; echo $$ > \"$MESOS_SANDBOX/mine\"");
    spec.command.user = Some("nobody".to_owned());
    let last = node.run(&spec).pop().expect("ended");
    assert_eq!((last.state, last.message.as_str()), (TaskState::Finished, "Command exited with status 0"));
    assert_eq!(node.stdout(&spec), "nobody\nnogroup\n");
}

/// Groups of this test alone: the parent is below that of the test, in the hierarchy of the controller, which may be
/// that of all tests.
fn own_group(mount: &str, test: &str) -> std::path::PathBuf {
    let group = std::path::Path::new(mount).join(format!("mesonet-test-{}-{test}", std::process::id()));
    fs::create_dir_all(&group).expect("creates a control group");
    group
}

fn with_group(mount: &str, name: &str, test: impl FnOnce(&mut Node)) {
    let group = own_group(mount, name);
    let directory = directory();
    let cgroups = CgroupMode::Below(group.clone());
    test(&mut Node::with(mesonet_agent::Config { cgroups, ..node::config(directory.path()) }));
    fs::remove_dir(group.join("mesonet")).expect("nothing is left in the group");
    fs::remove_dir(&group).expect("nothing is left in the group");
}

fn too_much_memory_has_its_own_reason() {
    let mounts = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
    let mount =
        mounts.into_iter().find(|mount| fs::exists(mount).is_ok_and(|exists| exists)).expect("mounted");
    with_group(mount, "memory", |node| {
        let mut spec = shell("t1", "exec tail /dev/zero");
        spec.resources.mem = mesonet_model::Scalar::from_units(40);
        let last = node.run(&spec).pop().expect("ended");
        assert_eq!(last.state, TaskState::Failed);
        assert_eq!(last.reason, Some(StatusReason::ReasonContainerLimitationMemory), "{last:?}");
        assert_eq!(last.message, "Memory limit exceeded: Command terminated with signal Killed");
    });
}

fn control_groups_find_what_nothing_else_finds() {
    let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let mount =
        mounts.into_iter().find(|mount| fs::exists(mount).is_ok_and(|exists| exists)).expect("mounted");
    with_group(mount, "escape", |node| {
        let spec = shell("t1", &format!("{CLEAN_DAEMON} sleep 1000"));
        node.launch(&spec);
        node.until(&spec, TaskState::Running);
        let daemon = node.number(&spec, "daemon");
        kill_9(node.supervisor(&spec));
        node.until(&spec, TaskState::Failed);
        assert!(!is_alive(daemon));
    });
}

/// Unmounts at the end of the test, whatever its result.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let directory = directory();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "mesonet-test"])
            .arg(directory.path())
            .status()
            .expect("runs");
        assert!(mounted.success());
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn a_full_disk_stops_no_task_and_fails_launches() {
    let disk = SmallDisk::new();
    let mut node = Node::start(disk.0.path());
    let survivor = shell("t1", "sleep 1000");
    node.launch(&survivor);
    node.until(&survivor, TaskState::Running);

    let noisy = shell("t2", "head -c 8000000 /dev/zero; exit 3");
    let failed = node.run(&noisy).pop().expect("ended");
    assert_eq!(failed.message, "Command exited with status 3");
    assert!(fs::metadata(node.sandbox(&noisy).join("stdout")).expect("exists").len() > 1_000_000);

    // What the ended task frees is taken as well.
    wait_for("the checkpoint to go", || (!node.checkpoint(&noisy).exists()).then_some(()));
    let filler = disk.0.path().join("filler");
    let full = fs::write(&filler, vec![0; 4 << 20]).expect_err("full");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let late = shell("t3", "true");
    let failed = node.run(&late).pop().expect("ended");
    assert_eq!(failed.state, TaskState::Failed);
    assert!(failed.message.contains("No space left on device"), "{}", failed.message);
    assert!(failed.message.contains(&*disk.0.path().to_string_lossy()), "{}", failed.message);

    node.kill(&survivor);
    node.until(&survivor, TaskState::Killed);
    fs::remove_file(filler).expect("removes");
    assert_eq!(node.run(&shell("t4", "true")).pop().expect("ended").state, TaskState::Finished);
}
