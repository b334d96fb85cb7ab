//! Files of tasks, which the master has read on the node of their agent.
//!
//! Each question has a stream of its own, which the master opens on the agent's connection: the question, the answer, and
//! then the bytes up to the end of the stream. So a long answer delays nothing else.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::TaskKey;
use quinn::{Connection, RecvStream, SendStream};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::task::JoinSet;

use crate::LinkError;
use crate::wire;

/// The most bytes of one answer.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// How long an agent may take for an answer. One of an earlier version never answers.
pub const FILE_ANSWER_MAX: Duration = Duration::from_secs(10);

/// Questions that an agent answers at once; further ones wait.
pub(crate) const FILES_AT_ONCE: u32 = 4;

/// Answers for the files of a node's tasks.
pub trait Files: fmt::Debug + Send + Sync {
    /// Reads a piece of a file, of at most [`FILE_BYTES_MAX`]. May block.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be read.
    fn read(&self, question: &FileQuestion) -> Result<FilePiece, FileFailure>;
}

/// A piece of a file in a task's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileQuestion {
    /// The task.
    pub task: TaskKey,
    /// The file's path in the sandbox.
    pub file: String,
    /// Where the piece begins; without it, only the file's size is asked for.
    pub offset: Option<u64>,
    /// How long it is at most.
    pub length: Option<u64>,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePiece {
    /// Where it begins; the file's size if no offset was asked for.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
}

/// There is no answer, or none with a piece of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Error)]
pub enum FileFailure {
    /// There is no such task or file.
    #[error("there is no such file")]
    NotFound,
    /// It cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(String),
    /// The agent is not connected to this master.
    #[error("the agent is not connected")]
    Away,
    /// The agent does not answer, or its connection has ended.
    #[error("the agent does not answer")]
    Silent,
}

/// What the stream begins with.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The bytes follow.
    Piece {
        offset: u64,
    },
    Failed(FileFailure),
}

/// Asks the agent at the other end.
pub(crate) async fn ask(connection: &Connection, question: &FileQuestion) -> Result<FilePiece, FileFailure> {
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.ok()?;
        wire::send(&mut send, question).await.ok()?;
        send.finish().ok()?;
        match wire::receive(&mut receive, wire::FIRST_FRAME_BYTES_MAX).await.ok()? {
            Answer::Failed(failure) => Some(Err(failure)),
            Answer::Piece { offset } => {
                let data = receive.read_to_end(FILE_BYTES_MAX).await.ok()?;
                Some(Ok(FilePiece { offset, data }))
            }
        }
    };
    let answer = tokio::time::timeout(FILE_ANSWER_MAX, exchange).await;
    answer.ok().flatten().unwrap_or(Err(FileFailure::Silent))
}

/// Answers all questions, until the connection ends.
pub(crate) async fn answer_all(connection: &Connection, files: Option<&Arc<dyn Files>>) -> LinkError {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match (stream, files) {
                (Ok((send, receive)), Some(files)) => {
                    answering.spawn(answer(files.clone(), send, receive));
                }
                // A stream that is dropped tells the master enough.
                (Ok(_), None) => {}
                (Err(error), _) => return error.into(),
            },
            Some(_) = answering.join_next(), if !answering.is_empty() => {}
        }
    }
}

async fn answer(files: Arc<dyn Files>, mut send: SendStream, mut receive: RecvStream) {
    let asked = wire::receive(&mut receive, wire::FIRST_FRAME_BYTES_MAX);
    // Who asks and says nothing, or what cannot be read, is not worth an answer.
    let Ok(Ok(question)) = tokio::time::timeout(FILE_ANSWER_MAX, asked).await else { return };
    let read = tokio::task::spawn_blocking(move || files.read(&question)).await;
    let read = read.unwrap_or_else(|error| Err(FileFailure::Unreadable(error.to_string())));
    let (answer, data) = match read {
        Ok(FilePiece { offset, data }) => (Answer::Piece { offset }, data),
        Err(failure) => (Answer::Failed(failure), Vec::new()),
    };
    // The master may have given up, or be gone.
    if wire::send(&mut send, &answer).await.is_ok() && send.write_all(&data).await.is_ok() {
        drop(send.finish());
    }
}
