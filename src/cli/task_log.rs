//! What tasks write to standard output and standard error.

use std::time::Duration;

use clap::Args;
use mesonet_model::AppId;
use serde::Deserialize;

use super::Session;
use super::answers::{App, OneApp, Tasks};
use super::client::{self, ApiError};
use super::error::CommandError;

/// How much of a file is asked for at once.
const PIECE: u64 = 64 * 1024;

/// How often a file is looked at for more: as often as a person can follow.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

/// `mesonet task log …`
#[derive(Debug, Clone, Args)]
pub struct LogArguments {
    /// The task, or an app: all of its tasks
    #[arg(value_name = "TASK|APP")]
    of: String,
    /// Go on with what is written from now on, until interrupted or the tasks are gone
    #[arg(short, long)]
    follow: bool,
    /// Standard error instead of standard output
    #[arg(long)]
    stderr: bool,
    /// Begin with the last lines instead of all
    #[arg(short = 'n', long, value_name = "LINES")]
    lines: Option<usize>,
}

/// A piece of a file.
#[derive(Debug, Deserialize)]
struct Piece {
    offset: u64,
    data: String,
}

/// A file of a task, and how far it was shown.
struct File {
    task: String,
    path: String,
    next: u64,
}

/// Shows the files.
pub fn run(session: &Session, arguments: &LogArguments) -> Result<(), CommandError> {
    let name = if arguments.stderr { "stderr" } else { "stdout" };
    let tasks = tasks_named(session, &arguments.of)?;
    let mut printer = Printer { session, is_headed: tasks.len() > 1, shown: None };
    let mut files = Vec::new();
    for task in tasks {
        let path = format!("/v1/tasks/{}/files/{name}", client::path_segment(&task));
        let mut file = File { task, path, next: 0 };
        match arguments.lines {
            Some(lines) => file.show_last(lines, &mut printer)?,
            None => file.show_rest(&mut printer)?,
        }
        files.push(file);
    }
    while arguments.follow && !files.is_empty() {
        std::thread::sleep(FOLLOW_INTERVAL);
        let mut still = Vec::new();
        for mut file in files {
            match file.show_rest(&mut printer) {
                Ok(()) => still.push(file),
                Err(CommandError::Api(error)) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        files = still;
    }
    Ok(())
}

/// The task of that id, else the tasks of the app of that id, else the task of that app that failed last.
fn tasks_named(session: &Session, name: &str) -> Result<Vec<String>, CommandError> {
    let Tasks { tasks } = session.client.get("/v2/tasks")?;
    if tasks.iter().any(|task| task.id == name) {
        return Ok(vec![name.to_owned()]);
    }
    // A task that has ended is not listed, but its files may still be there.
    let Ok(app) = AppId::parse(name) else { return Ok(vec![name.to_owned()]) };
    let ids: Vec<String> = tasks.into_iter().filter(|task| task.app_id == app).map(|task| task.id).collect();
    if !ids.is_empty() {
        return Ok(ids);
    }
    match session.client.get::<OneApp>(&format!("/v2/apps{app}")) {
        Ok(OneApp { app: App { last_task_failure: Some(failure), .. } }) => Ok(vec![failure.task_id]),
        Ok(_) => Err(CommandError::Failed(format!("{app} has no task (`mesonet app show {app}`)"))),
        Err(error) if error.is_not_found() => {
            Err(CommandError::Failed(format!("there is no task or app '{name}' (`mesonet task list`)")))
        }
        Err(error) => Err(error.into()),
    }
}

impl File {
    /// How long the file is at the moment.
    fn size(&self, session: &Session) -> Result<u64, ApiError> {
        Ok(session.client.get::<Piece>(&self.path)?.offset)
    }

    fn read(&self, session: &Session, offset: u64, length: u64) -> Result<String, ApiError> {
        Ok(session.client.get::<Piece>(&format!("{}?offset={offset}&length={length}", self.path))?.data)
    }

    /// Shows what was not shown yet.
    fn show_rest(&mut self, printer: &mut Printer<'_>) -> Result<(), CommandError> {
        let size = self.size(printer.session)?;
        if size < self.next {
            // It was rotated: what is there is new.
            self.next = 0;
        }
        while self.next < size {
            let length = PIECE.min(size - self.next);
            let text = self.read(printer.session, self.next, length)?;
            self.next += length;
            printer.print(&self.task, &text)?;
        }
        Ok(())
    }

    /// Shows the last lines, reading backwards until there are enough.
    fn show_last(&mut self, lines: usize, printer: &mut Printer<'_>) -> Result<(), CommandError> {
        let size = self.size(printer.session)?;
        let mut start = size;
        let mut text = String::new();
        while start > 0 && last_lines(&text, lines).len() == text.len() {
            let length = PIECE.min(start);
            start -= length;
            text.insert_str(0, &self.read(printer.session, start, length)?);
        }
        self.next = size;
        printer.print(&self.task, last_lines(&text, lines))
    }
}

/// The last lines of a text; all of it if it has no more. The last line may lack its end.
fn last_lines(text: &str, lines: usize) -> &str {
    let Some(skipped) = lines.checked_sub(1) else {
        return "";
    };
    let body = text.strip_suffix('\n').unwrap_or(text);
    body.rmatch_indices('\n').nth(skipped).map_or(text, |(end, _)| &text[end + 1..])
}

/// Writes pieces of files, with a heading where the file changes.
struct Printer<'session> {
    session: &'session Session,
    is_headed: bool,
    shown: Option<String>,
}

impl Printer<'_> {
    fn print(&mut self, task: &str, text: &str) -> Result<(), CommandError> {
        if text.is_empty() {
            return Ok(());
        }
        if self.is_headed && self.shown.as_deref() != Some(task) {
            let gap = if self.shown.is_some() { "\n" } else { "" };
            self.session.output.line(&format!("{gap}==> {task} <=="))?;
            self.shown = Some(task.to_owned());
        }
        self.session.output.bytes(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::last_lines;

    #[test]
    fn last_lines_counts_complete_and_incomplete_lines() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\n\n", 1, "\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(last_lines(text, lines), expected, "{text:?} {lines}");
        }
    }
}
