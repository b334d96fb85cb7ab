//! Asks an endpoint whether it listens.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// For how long an endpoint is asked that does not answer at all: as long as the proxy gives it.
const START_TIME: Duration = Duration::from_secs(10);

/// How often it is asked, as a part of the time since it was asked first: many that start have other things to do.
const ASK_PART: u32 = 10;
const ASK_INTERVAL: Duration = Duration::from_millis(20);
const ASK_INTERVAL_MAX: Duration = Duration::from_millis(250);

/// How long it may take to answer.
const ANSWER_TIME: Duration = Duration::from_millis(250);

/// How many are asked at a time.
pub(crate) const ASKED_MAX: usize = 64;

/// Waits until an endpoint takes a connection, or has not said for its time to start that it does not listen. Returns whether
/// somebody wants to know it until then.
pub(crate) async fn listens(place: SocketAddr, asked: &Semaphore, is_wanted: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    let mut silent_since = begun;
    while is_wanted() {
        let Ok(permit) = asked.acquire().await else { return false };
        let answer = tokio::time::timeout(ANSWER_TIME, TcpStream::connect(place)).await;
        drop(permit);
        match answer {
            Ok(Ok(_)) => return is_wanted(),
            // It says itself that it does not listen.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                silent_since = Instant::now()
            }
            // On a busy machine a single answer may come too late.
            _ if silent_since.elapsed() >= START_TIME => return is_wanted(),
            _ => {}
        }
        let pause = (begun.elapsed() / ASK_PART).clamp(ASK_INTERVAL, ASK_INTERVAL_MAX);
        tokio::time::sleep(pause).await;
    }
    false
}
