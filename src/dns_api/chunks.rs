//! Answers that are written while they are sent.

use std::io::{self, Write};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::mpsc;

/// The size of a piece: large enough to cost little, small enough that few clients at once take little memory.
const CHUNK_SIZE: usize = 64 * 1024;

/// Pieces that wait for a client.
const CHUNKS_MAX: usize = 2;

/// Hands on what is written, piece by piece. Blocks while the client is slower.
struct ChunkWriter {
    chunk: Vec<u8>,
    chunks: mpsc::Sender<io::Result<Bytes>>,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK_SIZE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_SIZE));
        let sent = self.chunks.blocking_send(Ok(chunk.into()));
        // The client has gone.
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// An answer whose body is what `write` writes, on a thread where it may block.
pub(super) fn written_while_sent(
    content_type: &'static str,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    tokio::task::spawn_blocking(move || {
        let mut out = ChunkWriter { chunk: Vec::with_capacity(CHUNK_SIZE), chunks: sender };
        let written = write(&mut out).and_then(|()| out.flush());
        if let Err(error) = written {
            // So that the client does not take the part for the whole. If it has gone, nobody reads it.
            let _ = out.chunks.blocking_send(Err(error));
        }
    });
    let chunks = stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((chunk, receiver))
    });
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(chunks)).into_response()
}
