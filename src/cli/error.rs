//! Why a client command ends with another exit code than 0.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use thiserror::Error;

use super::client::ApiError;
use super::dns::QueryError;

/// A command was not carried out, or what it waited for did not happen.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The arguments make no sense together; nothing was done.
    #[error("{0}")]
    Usage(String),
    /// Nobody reads the output any more, as with `| head`.
    #[error("standard output is closed")]
    OutputClosed,
    /// The output cannot be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// An argument names a file that cannot be read.
    #[error("cannot read {}", path.display())]
    ReadFile {
        /// The file; `-` is standard input.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An argument names a file that is not JSON.
    #[error("{} is not JSON", path.display())]
    ParseFile {
        /// The file; `-` is standard input.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The API could not be asked, or refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The name server could not be asked, or has no such name.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// What an operator wanted of the master's directory was not done.
    #[error(transparent)]
    Operate(Box<dyn std::error::Error + Send + Sync>),
    /// The change was accepted, but did not lead to what was asked for.
    #[error("{0}")]
    Failed(String),
}

impl CommandError {
    /// What the program ends with: 0 if only the reader went away, 2 for bad usage, 1 for everything else.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Usage(_) => ExitCode::from(2),
            Self::Output(_)
            | Self::ReadFile { .. }
            | Self::ParseFile { .. }
            | Self::Api(_)
            | Self::Query(_)
            | Self::Operate(_)
            | Self::Failed(_) => ExitCode::FAILURE,
        }
    }

    /// The message with its causes, as it is shown.
    pub fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            message.push_str(&format!(": {error}"));
            cause = error.source();
        }
        message
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Output(error),
        }
    }
}
