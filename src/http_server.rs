//! Serves the API's connections, so many at a time, and each only as long as its client says something.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

use crate::open_files;

/// Of the limit on open files. Each connection is one, and a client that holds many of them must not keep the rest of
/// the process from its own.
const CONNECTIONS_SHARE: f64 = 0.1;

/// Connections at most, also where the limit allows more: each takes a buffer of some KiB. When there are as many, the
/// oldest is closed for a new one: requests take milliseconds, so it is most likely one that only sits there.
const CONNECTIONS_MAX: usize = 4096;

/// How long the head of a request may be on its way, which is as well how long a connection may be idle between
/// requests. A client that was closed on while it was idle connects anew.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long to wait after a failure to accept, such as no file descriptor being left.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// What clients may take.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    connections: usize,
    head_timeout: Duration,
}

/// Serves until it is dropped, which ends the connections as well.
pub async fn serve(listener: TcpListener, router: Router) {
    let connections = open_files::share(CONNECTIONS_SHARE, CONNECTIONS_MAX);
    serve_within(Bounds { connections, head_timeout: HEAD_TIMEOUT }, listener, router).await;
}

async fn serve_within(bounds: Bounds, listener: TcpListener, router: Router) {
    let mut tasks = JoinSet::new();
    let mut open = VecDeque::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "The API cannot accept a connection");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        while tasks.try_join_next().is_some() {}
        make_room(&mut open, bounds.connections);
        open.push_back(tasks.spawn(serve_connection(bounds.head_timeout, stream, client, router.clone())));
    }
}

/// Closes the oldest connection if there are as many as there may be.
fn make_room(open: &mut VecDeque<AbortHandle>, connections_max: usize) {
    if open.len() < connections_max {
        return;
    }
    open.retain(|connection| !connection.is_finished());
    if open.len() >= connections_max
        && let Some(oldest) = open.pop_front()
    {
        tracing::debug!(connections_max, "The oldest API connection is closed for a new one");
        oldest.abort();
    }
}

async fn serve_connection(head_timeout: Duration, stream: TcpStream, client: SocketAddr, router: Router) {
    // Without it answers are merely later.
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router.layer(axum::Extension(ConnectInfo(client))));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, %client, "An API connection has failed");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// No test needs it.
    const LONG: Duration = Duration::from_secs(600);

    /// How long something that is bound to happen may take on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn start(bounds: Bounds) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listens");
        let address = listener.local_addr().expect("address");
        let router = Router::new().fallback(|| async { "here" });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_within(bounds, listener, router));
        (address, tasks)
    }

    async fn connect(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        // It may have been closed already, which is seen when it is read.
        let _ = stream.write_all(text.as_bytes()).await;
        stream
    }

    /// What comes until the connection is closed.
    async fn rest(mut stream: TcpStream) -> String {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
        // Who has sent what was not read any more is reset.
        let _ = read.expect("the connection is closed");
        String::from_utf8(bytes).expect("text")
    }

    /// What comes until a connection is closed that is served: on a busy machine, one may be closed before it is asked
    /// for something.
    async fn answer(address: SocketAddr, request: &str) -> String {
        let answering = async {
            loop {
                let answer = rest(connect(address, request).await).await;
                if !answer.is_empty() {
                    return answer;
                }
            }
        };
        tokio::time::timeout(PATIENCE, answering).await.expect("an answer")
    }

    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn who_only_sits_there_keeps_nobody_out() {
        let (address, _tasks) = start(Bounds { connections: 2, head_timeout: LONG }).await;
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(connect(address, "GET / HTTP/1.1\r\nHo").await);
        }
        assert!(rest(connect(address, REQUEST).await).await.ends_with("here"));
        assert_eq!(rest(idle.remove(0)).await, "", "the oldest is closed");
    }

    #[tokio::test]
    async fn a_slow_head_and_an_idle_connection_are_closed() {
        let (address, _tasks) =
            start(Bounds { connections: 9, head_timeout: Duration::from_millis(50) }).await;
        let slow = connect(address, "GET / HTTP/1.1\r\nHo").await;
        let silent = connect(address, "").await;
        assert_eq!(rest(slow).await, "");
        assert_eq!(rest(silent).await, "");
        let idle = answer(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(idle.ends_with("here"), "it is closed after an answer: {idle}");
    }
}
