//! Programs that are run, each within a time: whatever hangs is ended and named.

use std::io::{Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How long what takes no time may take on a busy machine.
pub const SHORT: Duration = Duration::from_secs(10);

/// How often a program is looked at, which must not disturb what is measured.
const INTERVAL: Duration = Duration::from_millis(10);

/// Runs a program that takes no time; what it printed.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    run_within(SHORT, program, arguments, "")
}

/// Runs a program with an input; what it printed. One that takes longer than it may is ended.
pub fn run_within(limit: Duration, program: &str, arguments: &[&str], input: &str) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let printed = read_all(child.stdout.take());
    let complaint = read_all(child.stderr.take());
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says itself why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let command = || format!("{program} {}", arguments.join(" "));
    let Some(status) = wait_within(&mut child, limit) else {
        end(&mut child, program);
        bail!("{} took longer than {} s", command(), limit.as_secs());
    };
    // Who inherited the output of one that has ended could keep it open.
    let text = |output: &Receiver<String>| output.recv_timeout(SHORT).unwrap_or_default();
    if !status.success() {
        bail!("{}: {}", command(), text(&complaint).trim());
    }
    Ok(text(&printed))
}

/// Ends a program. One that does not end even so is named and left behind.
pub fn end(child: &mut Child, name: &str) {
    let _ = child.kill();
    if wait_within(child, SHORT).is_none() {
        println!("{name}, process {}, does not end when it is killed", child.id());
    }
}

/// Waits for the end of a program.
fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(INTERVAL);
    }
}

fn read_all(source: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut octets = Vec::new();
        if let Some(mut source) = source {
            let _ = source.read_to_end(&mut octets);
        }
        let _ = sender.send(String::from_utf8_lossy(&octets).into_owned());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_ended_and_named() {
        let error = run_within(Duration::from_millis(50), "sleep", &["600"], "").expect_err("a limit");
        assert_eq!(error.to_string(), "sleep 600 took longer than 0 s");
    }

    #[test]
    fn input_goes_in_and_output_comes_out() {
        let long = "0123456789".repeat(100_000);
        assert_eq!(run_within(Duration::from_secs(60), "cat", &[], "").expect("cat"), "");
        assert_eq!(run_within(Duration::from_secs(60), "wc", &["-c"], "four").expect("wc").trim(), "4");
        assert_eq!(run("printf", &["%s", &long[..100_000]]).expect("printf"), long[..100_000]);
        assert!(
            run("sh", &["-c", "echo no >&2; exit 3"]).expect_err("a failure").to_string().ends_with(": no")
        );
    }
}
