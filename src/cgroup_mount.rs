//! Where control groups of version 2 are mounted.

use std::path::PathBuf;

/// The first such mount.
pub fn find() -> Option<PathBuf> {
    mount_in(&std::fs::read_to_string("/proc/self/mounts").ok()?)
}

/// Reads proc_pid_mounts(5). Control groups are mounted at paths without blanks, which would be escaped.
fn mount_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_beside_those_of_version_1() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_in(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_in("proc /proc proc rw 0 0\ncut"), None);
    }
}
