//! A task's output: from its pipes into files that cannot grow without bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::LogLimits;

/// What one read takes: what a pipe holds.
const CHUNK_BYTES: usize = 64 << 10;

/// How many chunks are taken in one turn, so that a task that never stops writing does not keep the supervisor from
/// hearing a kill.
const CHUNKS_PER_TURN: usize = 16;

/// One pipe of a task and its file.
#[derive(Debug)]
pub(super) struct Pump {
    pipe: OwnedFd,
    file: RotatingFile,
}

impl Pump {
    /// Copies what a pipe delivers; the pipe is made non-blocking.
    pub(super) fn new(pipe: OwnedFd, file: RotatingFile) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe, file })
    }

    /// Copies what is there. Says whether more can come.
    pub(super) fn copy(&mut self, chunks: usize) -> bool {
        let mut buffer = [0; CHUNK_BYTES];
        for _ in 0..chunks {
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(0) => return false,
                Ok(bytes) => self.file.write(&buffer[..bytes]),
                Err(Errno::INTR) => {}
                Err(error) => return error == Errno::AGAIN,
            }
        }
        true
    }

    /// One turn's worth. Says whether more can come.
    pub(super) fn copy_turn(&mut self) -> bool {
        self.copy(CHUNKS_PER_TURN)
    }
}

impl AsFd for Pump {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// A file that is set aside when it is full: `stdout` becomes `stdout.1`, that becomes `stdout.2`, and so on; the
/// oldest is deleted. What cannot be written is dropped and counted, and noted once there is room again: a full disk
/// must not stop the task.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    limits: LogLimits,
    file: Option<File>,
    size: u64,
    lost: Option<Lost>,
}

#[derive(Debug)]
struct Lost {
    bytes: u64,
    reason: io::Error,
}

impl RotatingFile {
    /// Creates the file, which must not exist.
    pub(super) fn create(path: PathBuf, limits: LogLimits) -> io::Result<Self> {
        let file = create_new(&path)?;
        Ok(Self { path, limits, file: Some(file), size: 0, lost: None })
    }

    /// Appends, or drops what cannot be appended.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let limit = usize::try_from(self.limits.file_bytes.max(1)).unwrap_or(usize::MAX);
        for piece in bytes.chunks(limit) {
            self.write_piece(piece);
        }
    }

    fn write_piece(&mut self, bytes: &[u8]) {
        let full = self.size.saturating_add(bytes.len() as u64) > self.limits.file_bytes;
        let ready = if (full && self.size > 0) || self.file.is_none() { self.rotate() } else { Ok(()) };
        if let Err(reason) = ready.and_then(|()| self.note_lost()) {
            return self.lose(bytes.len(), reason);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.append(rest) {
                Ok(written) => rest = &rest[written..],
                Err(reason) => return self.lose(rest.len(), reason),
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let written = match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        self.size += written as u64;
        Ok(written)
    }

    fn lose(&mut self, bytes: usize, reason: io::Error) {
        let lost = self.lost.get_or_insert(Lost { bytes: 0, reason });
        lost.bytes += bytes as u64;
    }

    /// Says in the file what is missing from it.
    fn note_lost(&mut self) -> io::Result<()> {
        let Some(lost) = &self.lost else { return Ok(()) };
        let note = format!("\n[mesonet: {} bytes of output are lost: {}]\n", lost.bytes, lost.reason);
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(note.as_bytes())?;
        self.size += note.len() as u64;
        self.lost = None;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        // A file that could not be created after the last rotation must not push the older ones out.
        if fs::symlink_metadata(&self.path).is_ok() {
            for index in (1..self.limits.old_files).rev() {
                unless_missing(fs::rename(self.set_aside(index), self.set_aside(index + 1)))?;
            }
            match self.limits.old_files {
                0 => unless_missing(fs::remove_file(&self.path))?,
                _ => unless_missing(fs::rename(&self.path, self.set_aside(1)))?,
            }
        }
        self.file = Some(create_new(&self.path)?);
        self.size = 0;
        Ok(())
    }

    fn set_aside(&self, index: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!(".{index}"));
        path.into()
    }
}

/// The task owns the directory and may put a link in the file's place, so an existing name is never opened.
fn create_new(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &tempfile::TempDir, file_bytes: u64, old_files: u32) -> RotatingFile {
        let path = directory.path().join("stdout");
        RotatingFile::create(path, LogLimits { file_bytes, old_files }).expect("creates")
    }

    fn contents(directory: &tempfile::TempDir) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = fs::read_dir(directory.path())
            .expect("lists")
            .map(|entry| entry.expect("entry"))
            .map(|entry| {
                let text = fs::read_to_string(entry.path()).expect("reads");
                (entry.file_name().to_string_lossy().into_owned(), text)
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn files_are_set_aside_and_the_oldest_goes() {
        for (old_files, expected) in [
            (0, vec![("stdout", "eeee")]),
            (1, vec![("stdout", "eeee"), ("stdout.1", "dddd")]),
            (2, vec![("stdout", "eeee"), ("stdout.1", "dddd"), ("stdout.2", "bbcc")]),
        ] {
            let directory = tempfile::tempdir().expect("directory");
            let mut file = file(&directory, 4, old_files);
            for piece in ["aaa", "bb", "cc", "dddd", "eeee"] {
                file.write(piece.as_bytes());
            }
            let expected: Vec<(String, String)> =
                expected.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
            assert_eq!(contents(&directory), expected);
        }
    }

    #[test]
    fn one_large_write_is_bounded_too() {
        let directory = tempfile::tempdir().expect("directory");
        file(&directory, 4, 1).write(b"aaaabbbbccccdd");
        let expected =
            vec![("stdout".to_owned(), "dd".to_owned()), ("stdout.1".to_owned(), "cccc".to_owned())];
        assert_eq!(contents(&directory), expected);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_noted() {
        let directory = tempfile::tempdir().expect("directory");
        let mut file = file(&directory, 1000, 1);
        file.file = Some(OpenOptions::new().write(true).open("/dev/full").expect("opens"));
        file.write(b"12345");
        file.write(b"678");
        file.file = None;
        file.write(b"after");
        let (name, text) = contents(&directory).remove(0);
        assert_eq!(name, "stdout");
        assert_eq!(
            text,
            "\n[mesonet: 8 bytes of output are lost: No space left on device (os error 28)]\nafter"
        );
    }

    #[test]
    fn a_link_in_the_place_of_the_file_is_not_followed() {
        let directory = tempfile::tempdir().expect("directory");
        let elsewhere = tempfile::NamedTempFile::new().expect("file");
        let mut file = file(&directory, 4, 1);
        fs::remove_file(directory.path().join("stdout")).expect("removes");
        std::os::unix::fs::symlink(elsewhere.path(), directory.path().join("stdout")).expect("links");
        file.write(b"aaa");
        file.write(b"bbb");
        assert_eq!(fs::read_to_string(elsewhere.path()).expect("reads"), "");
        assert_eq!(fs::read_to_string(directory.path().join("stdout")).expect("reads"), "bbb");
    }
}
