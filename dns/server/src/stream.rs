//! Queries over a stream, each behind its length (RFC 7766): TCP, and TLS on it.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::connections::Slot;
use crate::metrics::Transport;
use crate::responder::Step;
use crate::server::{Shared, Verdict};

/// How long a client may take to receive an answer: that of dcos-dns.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Octets of the longest query. A connection that announces a longer one is closed: its end would have to be waited
/// for.
pub(crate) const QUERY_LENGTH_MAX: usize = 4096;

/// Octets of a query's length.
const LENGTH_OCTETS: usize = 2;

/// Queries of one connection that wait for upstream servers at a time. Further ones are not read until one is answered.
const WAITING_MAX: usize = 64;

/// Where queries come from.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    pub(crate) transport: Transport,
    pub(crate) slot: Arc<Slot>,
}

/// Answers the queries of one connection until the client ends it, is idle or sends what cannot be read, or the server
/// is gone. Answers that wait for upstream servers are overtaken by others.
pub(crate) async fn serve(
    stream: impl AsyncRead + AsyncWrite,
    client: Client,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<()>,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(stream);
    let (mut frames, mut writer) = (Frames::new(reader), Box::pin(writer));
    let mut waiting = FuturesUnordered::new();
    loop {
        let verdict = tokio::select! {
            biased;
            _ = stop.changed() => return Ok(()),
            () = client.slot.idle() => return Ok(()),
            Some(verdict) = waiting.next() => verdict,
            frame = frames.next(), if waiting.len() < WAITING_MAX => {
                let Some(query) = frame? else { break };
                let busy = client.slot.begin();
                let asked = shared.asked(&query, client.address, client.transport, Instant::now());
                let step = shared.respond(&query, client.address, client.transport);
                match step {
                    Step::Done(outcome) => shared.counted(outcome, asked),
                    Step::Transfer(transfer) => {
                        for message in transfer.messages() {
                            send(&mut writer, &message).await?;
                        }
                        shared.transferred(asked);
                        continue;
                    }
                    Step::Wait(forwarded) => {
                        let shared = shared.clone();
                        waiting.push(async move {
                            let outcome = forwarded.finish().await;
                            drop(busy);
                            shared.counted(outcome, asked)
                        });
                        continue;
                    }
                }
            }
        };
        match verdict {
            Verdict::Send(message) => send(&mut writer, &message).await?,
            Verdict::SendAndClose(message) => {
                send(&mut writer, &message).await?;
                break;
            }
            Verdict::Close => break,
        }
    }
    // Who sends no more may still receive.
    while let Some(Verdict::Send(message)) = waiting.next().await {
        send(&mut writer, &message).await?;
    }
    timeout(SEND_TIMEOUT, writer.shutdown()).await?
}

/// A message behind its length; nothing if it is too long for that.
pub(crate) fn framed(message: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(message.len()).ok()?;
    Some([&length.to_be_bytes(), message].concat())
}

async fn send(writer: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let framed = framed(message).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let sent = async {
        writer.write_all(&framed).await?;
        writer.flush().await
    };
    timeout(SEND_TIMEOUT, sent).await?
}

/// Cuts a stream into queries.
struct Frames<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    fn new(reader: R) -> Self {
        Self { reader, buffer: BytesMut::with_capacity(512) }
    }

    /// The next query; nothing at the stream's end or before a query that is too long. Loses nothing if it is
    /// cancelled.
    async fn next(&mut self) -> io::Result<Option<BytesMut>> {
        loop {
            if let Some(length) =
                self.buffer.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length)))
            {
                if length > QUERY_LENGTH_MAX {
                    return Ok(None);
                }
                if self.buffer.len() >= LENGTH_OCTETS + length {
                    self.buffer.advance(LENGTH_OCTETS);
                    return Ok(Some(self.buffer.split_to(length)));
                }
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}
