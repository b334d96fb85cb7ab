//! A thread with a runtime of its own, on which everything runs that speaks with etcd: so commits may block their
//! caller wherever that runs, and a lease is renewed however busy the rest of the process is.

use std::io;
use std::sync::{Arc, mpsc};

use thiserror::Error;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The thread. It ends when this is dropped, and with it whatever runs there.
#[derive(Debug)]
pub(super) struct Engine {
    runtime: Handle,
    /// Dropped to end the thread.
    _end: oneshot::Sender<()>,
}

/// The thread has ended, or what was to be done has panicked.
#[derive(Debug, Clone, Copy, Error)]
#[error("the connection to etcd is closed")]
pub(super) struct Ended;

impl Engine {
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let run = move || {
            // Only a dropped sender ends it.
            let _ = runtime.block_on(ended);
        };
        std::thread::Builder::new().name("etcd".to_owned()).spawn(run)?;
        Ok(Arc::new(Self { runtime: handle, _end: end }))
    }

    /// Has something done there, and nothing more of it once this is dropped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Ended> {
        let mut task = Abort(self.runtime.spawn(work));
        (&mut task.0).await.map_err(|_| Ended)
    }

    /// Has something done there and blocks until it is done.
    pub(super) fn run_blocking<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Ended> {
        let (done, result) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            // Whoever has asked waits.
            let _ = done.send(work.await);
        });
        result.recv().map_err(|_| Ended)
    }
}

struct Abort<T>(JoinHandle<T>);

impl<T> Drop for Abort<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
