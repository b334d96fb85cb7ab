//! Standard output, which may be closed at any time by who reads it.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::error::CommandError;
use super::table::Table;

/// Where answers go, and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Output for programs (`json`) or for people.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read the output.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes bytes as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), CommandError> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()?;
        Ok(())
    }

    /// Writes a line.
    pub fn line(&self, line: &str) -> Result<(), CommandError> {
        self.bytes(format!("{line}\n").as_bytes())
    }

    /// Writes a value as indented JSON.
    pub fn value(&self, value: &impl Serialize) -> Result<(), CommandError> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        self.line(&text)
    }

    /// Writes a table.
    pub fn table<const N: usize>(&self, table: &Table<N>) -> Result<(), CommandError> {
        self.bytes(table.render().as_bytes())
    }

    /// Writes a value for programs, else the line that it means for people.
    pub fn value_or_line(&self, value: &impl Serialize, line: &str) -> Result<(), CommandError> {
        if self.json { self.value(value) } else { self.line(line) }
    }
}

/// A line on the terminal that says how far long work is; nothing where standard error is no terminal.
#[derive(Debug)]
pub struct Progress {
    is_shown: bool,
    width: usize,
}

impl Progress {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        Self { is_shown: io::stderr().is_terminal(), width: 0 }
    }

    /// Replaces the line.
    pub fn show(&mut self, text: &str) {
        if self.is_shown {
            let blank = self.width.saturating_sub(text.chars().count());
            self.width = text.chars().count();
            write_best_effort(&format!("\r{text}{:blank$}", ""));
        }
    }
}

impl Drop for Progress {
    /// Wipes the line, so that what follows starts on an empty one.
    fn drop(&mut self) {
        if self.is_shown && self.width > 0 {
            write_best_effort(&format!("\r{:width$}\r", "", width = self.width));
        }
    }
}

/// Writes a line to standard error.
pub fn warn(text: &str) {
    write_best_effort(&format!("{text}\n"));
}

/// A terminal that went away is no reason to fail.
fn write_best_effort(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}
