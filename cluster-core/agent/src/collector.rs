//! Removes old sandboxes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesonet_model::Timestamp;

use crate::clock;
use crate::layout::{LATEST, Layout};

/// How many sandboxes of ended tasks are kept: enough to look into the last failures of many apps; with the default
/// log limits they take at most 20 GB.
const SANDBOXES_MAX: usize = 200;

/// How long the sandbox of an ended task is kept; a week, as in Mesos.
const AGE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A sandbox that was written to so recently may be that of a task that was started while the others were looked at.
const AGE_MIN: Duration = Duration::from_secs(60);

/// A sandbox of a task that has ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Old {
    /// When something was last written to its output, or created in it.
    used: Timestamp,
    path: PathBuf,
}

/// Removes the sandboxes that are too old or too many, but none of the live ones.
pub(crate) fn collect(layout: &Layout, live: &[PathBuf], now: Timestamp) {
    let sandboxes = match find(&layout.agents()) {
        Ok(sandboxes) => sandboxes,
        Err(error) => return tracing::warn!(%error, "Cannot look for old sandboxes"),
    };
    let ended = sandboxes.into_iter().filter(|sandbox| !live.contains(&sandbox.path)).collect();
    for path in surplus(ended, now) {
        match remove(&path) {
            Ok(()) => tracing::debug!(sandbox = %path.display(), "An old sandbox is removed"),
            Err(error) => {
                tracing::warn!(%error, sandbox = %path.display(), "Cannot remove an old sandbox");
            }
        }
    }
}

/// Which ones go.
fn surplus(mut ended: Vec<Old>, now: Timestamp) -> Vec<PathBuf> {
    ended.sort();
    let too_many = ended.len().saturating_sub(SANDBOXES_MAX);
    let goes = |(index, old): &(usize, Old)| {
        let age = now.since(old.used);
        age >= AGE_MIN && (*index < too_many || age >= AGE_MAX)
    };
    ended.into_iter().enumerate().filter(goes).map(|(_, old)| old.path).collect()
}

/// All sandboxes below the directory of all agent ids.
fn find(agents: &Path) -> io::Result<Vec<Old>> {
    let mut found = Vec::new();
    for agent in directories(agents)? {
        for framework in directories(&agent.join("frameworks"))? {
            for executor in directories(&framework.join("executors"))? {
                for path in directories(&executor.join("runs"))? {
                    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified());
                    let times = ["", "stdout", "stderr"].map(|name| modified(&path.join(name)).ok());
                    if let Some(used) = times.into_iter().flatten().max() {
                        found.push(Old { used: clock::from_system(used), path });
                    }
                }
            }
        }
    }
    Ok(found)
}

/// The directories in a directory; links to directories are none.
fn directories(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        // One that was not finished, or that goes at this moment: the others are looked at all the same.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes a sandbox, and the directory of its task if it was the last one.
fn remove(sandbox: &Path) -> io::Result<()> {
    fs::remove_dir_all(sandbox)?;
    let (Some(runs), Some(name)) = (sandbox.parent(), sandbox.file_name()) else { return Ok(()) };
    let latest = runs.join(LATEST);
    if fs::read_link(&latest).is_ok_and(|target| target.as_os_str() == name) {
        fs::remove_file(&latest)?;
    }
    // Refused if there are other runs, which is what decides.
    if fs::remove_dir(runs).is_ok()
        && let Some(executor) = runs.parent()
    {
        let _ = fs::remove_dir(executor);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(seconds: i64) -> Old {
        Old { used: Timestamp::from_millis(seconds * 1000), path: PathBuf::from(format!("/{seconds}")) }
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let day = 24 * 3600;
        let now = Timestamp::from_millis(1000 * day * 1000);
        let newest = 1000 * day - 3600;
        let many: Vec<Old> =
            (0..i64::try_from(SANDBOXES_MAX).expect("small") + 2).map(|n| old(newest - n)).collect();
        let expected = [old(newest - 201).path, old(newest - 200).path];
        assert_eq!(surplus(many, now), expected);
    }

    #[test]
    fn a_week_is_long_enough() {
        let day = 24 * 3600;
        let now = Timestamp::from_millis(1000 * day * 1000);
        let ended = vec![old(994 * day), old(992 * day), old(993 * day)];
        assert_eq!(surplus(ended, now), [old(992 * day).path, old(993 * day).path]);
    }

    #[test]
    fn live_sandboxes_and_their_neighbours_stay() {
        let directory = tempfile::tempdir().expect("directory");
        let layout = Layout::new(directory.path());
        let runs = layout.agents().join("a/frameworks/f/executors/t/runs");
        for name in ["ended", "live"] {
            fs::create_dir_all(runs.join(name)).expect("creates");
        }
        let lonely = layout.agents().join("a/frameworks/f/executors/u/runs/ended");
        fs::create_dir_all(&lonely).expect("creates");
        std::os::unix::fs::symlink("ended", lonely.with_file_name(LATEST)).expect("links");

        let next_month = clock::now().plus(Duration::from_secs(30 * 24 * 3600));
        collect(&layout, &[runs.join("live")], next_month);
        assert!(runs.join("live").exists());
        assert!(!runs.join("ended").exists());
        assert!(!layout.agents().join("a/frameworks/f/executors/u").exists());
    }
    #[test]
    fn a_task_without_runs_does_not_keep_the_others() {
        let directory = tempfile::tempdir().expect("directory");
        let layout = Layout::new(directory.path());
        let executors = layout.agents().join("a/frameworks/f/executors");
        fs::create_dir_all(executors.join("unfinished")).expect("creates");
        let ended = executors.join("t/runs/ended");
        fs::create_dir_all(&ended).expect("creates");

        collect(&layout, &[], clock::now().plus(Duration::from_secs(30 * 24 * 3600)));
        assert!(!ended.exists());
    }
}
