//! A small disk.

use std::io::Write as _;
use std::path::PathBuf;

use super::program;

/// Room for an identity and some views.
const SIZE: &str = "size=256k";

/// Mounted on a directory until dropped. Needs root.
pub struct Tmpfs {
    dir: PathBuf,
}

impl Tmpfs {
    /// Mounts it on a directory, which is made.
    #[track_caller]
    pub fn mount(dir: &str) -> Self {
        std::fs::create_dir_all(dir).expect("directory");
        program::run("mount", &["-t", "tmpfs", "-o", SIZE, "tmpfs", dir]).success();
        Self { dir: dir.into() }
    }

    /// Leaves no byte of it.
    #[track_caller]
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.filling()).expect("file");
        while file.write_all(&[0; 512]).is_ok() {}
    }

    /// Makes room again.
    #[track_caller]
    pub fn empty(&self) {
        std::fs::remove_file(self.filling()).expect("removed");
    }

    fn filling(&self) -> PathBuf {
        self.dir.join("filling")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Detached at once; freed when the last process that uses it has ended.
        program::run("umount", &["--lazy".as_ref(), self.dir.as_os_str()]);
    }
}
