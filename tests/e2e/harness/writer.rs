//! Somebody who writes all the time and remembers what was acknowledged.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use super::network::Network;
use super::program;

/// Posts an app without instances to one master after the other, and notes the ids of those that were taken. Arguments:
/// where they are noted, and the masters. A bound on the rounds ends it even if nobody does.
const SCRIPT: &str = r#"
notes=$1
shift
round=0
while [ $round -lt 2000 ]; do
    for master in "$@"; do
        round=$((round + 1))
        id="/written/w$round"
        code=$(curl -s -o /dev/null -w '%{http_code}' --max-time 5 --noproxy '*' -H 'Content-Type: application/json' \
            -d "{\"id\": \"$id\", \"cmd\": \"true\", \"instances\": 0}" "http://$master/v2/apps")
        [ "$code" = 201 ] && echo "$id" >>"$notes"
        sleep 0.02
    done
done
"#;

/// Ended when dropped.
pub struct Writer {
    shell: Child,
    notes: PathBuf,
}

impl Writer {
    /// Begins, from a host, with the API of these masters.
    #[track_caller]
    pub fn start(network: &Network, host: &str, masters: &[String], dir: &Path) -> Self {
        let notes = dir.join("acknowledged");
        let mut command = network.command(host, "sh");
        command.args(["-c", SCRIPT, "writer"]).arg(&notes).args(masters);
        let shell = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self { shell: shell.unwrap_or_else(|error| program::missing("sh", &error)), notes }
    }

    /// The ids of the apps that were taken.
    pub fn acknowledged(&self) -> Vec<String> {
        let notes = std::fs::read_to_string(&self.notes).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }

    /// Whether so many were taken.
    pub fn has_written(&self, count: usize) -> Result<(), String> {
        let written = self.acknowledged().len();
        if written >= count { Ok(()) } else { Err(format!("{written} of {count} writes")) }
    }

    /// Ends it. The ids of the apps that were taken.
    pub fn finish(mut self) -> Vec<String> {
        self.end();
        self.acknowledged()
    }

    fn end(&mut self) {
        // It has ended already if this fails.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}
