//! Files that are replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Replaces a file, or makes it. Readers see all of the old or all of the new, unless something is mounted there, as
/// in containers and network namespaces: that can only be written in place. A symbolic link is replaced itself.
///
/// # Errors
/// As the system says. Only while it is written in place can the old content be lost.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let unfinished = beside(path);
    let renamed = write_new(&unfinished, content).and_then(|()| fs::rename(&unfinished, path));
    if renamed.is_ok() {
        return Ok(());
    }
    // What is left of it would only confuse. If there is nothing, all is well.
    let _ = fs::remove_file(&unfinished);
    match renamed {
        Err(error) if is_mounted(&error) => fs::write(path, content),
        other => other,
    }
}

/// Puts a symbolic link in the place of a file.
///
/// # Errors
/// As the system says. The file is unchanged then.
pub fn replace_by_link(path: &Path, target: &Path) -> io::Result<()> {
    let unfinished = beside(path);
    let _ = fs::remove_file(&unfinished);
    std::os::unix::fs::symlink(target, &unfinished)?;
    fs::rename(&unfinished, path).inspect_err(|_| {
        let _ = fs::remove_file(&unfinished);
    })
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    file.sync_data()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".mesonet-new");
    name.into()
}

fn is_mounted(error: &io::Error) -> bool {
    [Errno::BUSY, Errno::XDEV].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_a_link_are_replaced_without_a_trace() {
        let dir = tempfile::tempdir().expect("directory");
        let (file, elsewhere) = (dir.path().join("file"), dir.path().join("elsewhere"));
        fs::write(&elsewhere, "kept").expect("written");
        replace_by_link(&file, &elsewhere).expect("link");
        assert_eq!(fs::read_to_string(&file).expect("read"), "kept");
        replace(&file, b"new").expect("replaced");
        assert_eq!(fs::read_to_string(&file).expect("read"), "new");
        assert_eq!(fs::read_to_string(&elsewhere).expect("read"), "kept");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 2, "nothing else is left");
        assert!(replace(&dir.path().join("no/such"), b"").is_err());
    }
}
