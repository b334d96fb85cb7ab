//! The agent's end of a supervisor's control socket: one small task per running task.

use std::io;
use std::os::unix::net::UnixStream as BlockingStream;

use mesonet_model::TaskKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::health::News;
use crate::protocol::{self, Event, Request};

/// Requests on their way to one supervisor, which takes them at once. If it does not, it is stuck in the kernel and
/// one more kill changes nothing; the request is dropped.
const REQUESTS_DEPTH: usize = 8;

/// What a link or a check has to say, and about which run of which task.
#[derive(Debug)]
pub(crate) struct Notice {
    pub(crate) task: TaskKey,
    pub(crate) container: Uuid,
    pub(crate) what: What,
}

/// What has happened to a run.
#[derive(Debug)]
pub(crate) enum What {
    /// The supervisor says something.
    Event(Event),
    /// The supervisor does not answer any more.
    Closed,
    /// What a killed supervisor had left is dealt with.
    Cleared { nothing_left: bool },
    /// A check of the task says something.
    Health(News),
    /// The task listens, or it is not waited for any more.
    Looked { listening: Option<bool> },
}

/// A connection to a supervisor.
#[derive(Debug)]
pub(crate) struct Link {
    requests: mpsc::Sender<Request>,
}

impl Link {
    /// Serves the connection in the background, until either side closes it.
    pub(crate) fn open(
        stream: BlockingStream,
        task: TaskKey,
        container: Uuid,
        notices: mpsc::Sender<Notice>,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        let (requests, receiver) = mpsc::channel(REQUESTS_DEPTH);
        let speaker = Speaker { task, container, notices };
        tokio::spawn(async move {
            // How the connection ended makes no difference: the exit record and the socket tell the rest.
            let _ = serve(stream, receiver, &speaker).await;
            speaker.say(What::Closed).await;
        });
        Ok(Self { requests })
    }

    /// Passes a request on.
    pub(crate) fn send(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            tracing::warn!("A supervisor does not take requests");
        }
    }
}

/// Says things of one run.
#[derive(Debug, Clone)]
pub(crate) struct Speaker {
    pub(crate) task: TaskKey,
    pub(crate) container: Uuid,
    pub(crate) notices: mpsc::Sender<Notice>,
}

impl Speaker {
    /// Waits while the loop is busy. If the loop has ended, nobody wants to know.
    pub(crate) async fn say(&self, what: What) {
        let notice = Notice { task: self.task.clone(), container: self.container, what };
        let _ = self.notices.send(notice).await;
    }
}

async fn serve(
    mut stream: UnixStream,
    mut requests: mpsc::Receiver<Request>,
    speaker: &Speaker,
) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            read = reader.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Ok(());
                }
                for event in protocol::decode(&mut buffer)? {
                    speaker.say(What::Event(event)).await;
                }
            }
            request = requests.recv() => match request {
                Some(request) => writer.write_all(&protocol::encode(&request)).await?,
                None => return Ok(()),
            },
        }
    }
}
