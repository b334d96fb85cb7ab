//! What all parts share: the connection, the image, and the task that keeps the image up to date.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesonet_model::Revision;
use tokio::sync::watch;
use tokio::time::Instant;

use super::connection::{Connection, Fault, Watching};
use super::image::{self, Image};
use super::keys::{self, Keys};
use super::messages::{
    RangeRequest, WatchCreateRequest, WatchOrder, WatchProgressRequest, WatchRequest, WatchResponse,
};
use super::{EtcdError, EtcdSettings, Leader};
use crate::Contents;

/// Keys of one page when everything is read.
const PAGE: i64 = 1000;

/// How long an etcd is waited for that is just starting, or electing.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take to read everything.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);

/// Between attempts to follow etcd again.
const PAUSE: Duration = Duration::from_millis(50);

/// Between attempts to read everything again.
const RELOAD_PAUSE: Duration = Duration::from_secs(1);

/// A member that has said nothing for so long is asked whether it is there.
const PROBE: Duration = Duration::from_millis(500);

/// A member that does not answer the question for so long is left.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// A cluster in etcd.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) keys: Keys,
    pub(super) connection: Connection,
    pub(super) lease: Duration,
    image: Mutex<Image>,
    pub(super) leader: watch::Sender<Option<Leader>>,
    pub(super) revision: watch::Sender<Revision>,
    pub(super) is_current: watch::Sender<bool>,
    /// [`Image::at`].
    at: watch::Sender<i64>,
}

/// Why following has ended.
enum Interrupted {
    /// The changes from where the image is are no more, or the image is of another history.
    Outdated(&'static str),
    /// The stream broke.
    Broken(String),
}

impl Core {
    /// Reads everything. Needs a runtime.
    pub(super) async fn open(settings: &EtcdSettings) -> Result<Self, EtcdError> {
        let keys = Keys::new(&settings.cluster);
        let connection = Connection::new(settings)?;
        let unreachable =
            |fault| EtcdError::Unreachable { place: connection.place(), source: Box::new(fault) };
        // Tells soon whether anybody is there.
        let format = RangeRequest { key: keys.key(keys::FORMAT_KEY), ..RangeRequest::default() };
        connection.range(format, Instant::now() + PATIENCE).await.map_err(unreachable)?;
        let image = load(&connection, &keys).await?;
        Ok(Self {
            leader: watch::Sender::new(image.leader.clone()),
            revision: watch::Sender::new(image.marker.revision),
            is_current: watch::Sender::new(true),
            at: watch::Sender::new(image.at),
            image: Mutex::new(image),
            keys,
            connection,
            lease: settings.lease,
        })
    }

    pub(super) fn image(&self) -> MutexGuard<'_, Image> {
        // A panic while it was changed would have ended the task that follows; what is there is what was.
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn contents(&self) -> Contents {
        let (revision, records) = {
            let image = self.image();
            (image.marker.revision, image.records.clone())
        };
        image::contents(revision, &records)
    }

    /// Returns once the image has a change of etcd's, or not in time.
    pub(super) async fn reach(&self, at: i64, until: Instant) -> bool {
        let mut reached = self.at.subscribe();
        let reach = reached.wait_for(|reached| *reached >= at);
        tokio::time::timeout_at(until, reach).await.is_ok_and(|reached| reached.is_ok())
    }

    /// Keeps the image up to date, for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            match self.follow_once().await {
                Interrupted::Broken(reason) => {
                    self.is_current.send_if_modified(|is_current| {
                        if *is_current {
                            tracing::warn!(reason, "Cannot follow etcd, trying again");
                        }
                        std::mem::replace(is_current, false)
                    });
                    tokio::time::sleep(PAUSE).await;
                }
                Interrupted::Outdated(reason) => {
                    self.is_current.send_replace(false);
                    tracing::info!(reason, "Reading everything from etcd again");
                    self.reload().await;
                }
            }
        }
    }

    async fn reload(&self) {
        loop {
            match load(&self.connection, &self.keys).await {
                Ok(image) => {
                    *self.image() = image;
                    self.announce();
                    return;
                }
                Err(error) => {
                    let error = format!("{:#}", Chain(&error));
                    tracing::error!(error, "Cannot read the state from etcd, trying again");
                    tokio::time::sleep(RELOAD_PAUSE).await;
                }
            }
        }
    }

    async fn follow_once(&self) -> Interrupted {
        let range = self.keys.below("");
        let create = WatchCreateRequest {
            key: range.key,
            range_end: range.range_end,
            start_revision: self.image().at + 1,
        };
        let order = WatchRequest { order: Some(WatchOrder::Create(create)) };
        let mut watching = match self.connection.watch(order).await {
            Ok(watching) => watching,
            Err(fault) => return Interrupted::Broken(fault.to_string()),
        };
        loop {
            let answer = match next(&mut watching).await {
                Ok(answer) => answer,
                Err(reason) => {
                    self.connection.leave_watched(&watching);
                    return Interrupted::Broken(reason);
                }
            };
            if let Err(interrupted) = self.take(answer).await {
                self.connection.leave_watched(&watching);
                return interrupted;
            }
        }
    }

    async fn take(&self, answer: WatchResponse) -> Result<(), Interrupted> {
        if answer.compact_revision > 0 {
            return Err(Interrupted::Outdated("etcd has forgotten changes that are missing here"));
        }
        if answer.canceled {
            return Err(Interrupted::Broken(answer.cancel_reason));
        }
        let newest = answer.header.map_or(0, |header| header.revision);
        if newest < self.image().at && self.has_gone_back().await? {
            return Err(Interrupted::Outdated("etcd has lost changes that are here"));
        }
        if answer.created {
            let was_current = self.is_current.send_replace(true);
            if !was_current {
                tracing::info!("Following etcd again");
            }
        }
        if answer.events.is_empty() {
            return Ok(());
        }
        {
            let mut image = self.image();
            for event in &answer.events {
                if let Err(error) = image.change(event) {
                    tracing::error!(%error, "The state in etcd cannot be used");
                    // The image is of no use from here on; whether everything is, reading it again will tell.
                    return Err(Interrupted::Outdated("a change cannot be read"));
                }
            }
        }
        self.announce();
        Ok(())
    }

    /// Whether etcd was restored from a backup: a member that lags behind the others also knows less than we do, but
    /// a read that all agree on does not.
    async fn has_gone_back(&self) -> Result<bool, Interrupted> {
        let at = self.image().at;
        let request = RangeRequest { key: self.keys.key(keys::REVISION), ..RangeRequest::default() };
        let answer = self.connection.range(request, Instant::now() + PATIENCE).await;
        let answer = answer.map_err(|fault| Interrupted::Broken(fault.to_string()))?;
        Ok(answer.header.is_some_and(|header| header.revision < at))
    }

    fn announce(&self) {
        let (leader, revision, at) = {
            let image = self.image();
            (image.leader.clone(), image.marker.revision, image.at)
        };
        self.leader.send_if_modified(|known| replace_if_other(known, leader));
        self.revision.send_if_modified(|known| replace_if_other(known, revision));
        self.at.send_replace(at);
    }
}

/// The next answer of a member that is there.
async fn next(watching: &mut Watching) -> Result<WatchResponse, String> {
    let mut was_asked = false;
    loop {
        let patience = if was_asked { SILENCE_MAX } else { PROBE };
        match tokio::time::timeout(patience, watching.answers.message()).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            Ok(Ok(None)) => return Err("the stream has ended".to_owned()),
            Ok(Err(status)) => return Err(status.message().to_owned()),
            Err(_) if was_asked => return Err("it has fallen silent".to_owned()),
            Err(_) => {
                let order = WatchRequest { order: Some(WatchOrder::Progress(WatchProgressRequest {})) };
                // If the stream is closed or stuck, no answer tells.
                let _ = watching.orders.try_send(order);
                was_asked = true;
            }
        }
    }
}

/// Reads everything as it is at one moment.
async fn load(connection: &Connection, keys: &Keys) -> Result<Image, EtcdError> {
    let until = Instant::now() + LOAD_PATIENCE;
    loop {
        match load_once(connection, keys, until).await? {
            Ok(image) => return Ok(image),
            // The moment that was begun with is compacted away. The next attempt begins with a newer one.
            Err(fault) if fault.is_compacted() && Instant::now() < until => {}
            Err(fault) => {
                return Err(EtcdError::Unreachable { place: connection.place(), source: Box::new(fault) });
            }
        }
    }
}

async fn load_once(
    connection: &Connection,
    keys: &Keys,
    until: Instant,
) -> Result<Result<Image, Fault>, EtcdError> {
    let mut image = Image::new(keys.clone());
    let mut at = 0;
    let mut request = RangeRequest { limit: PAGE, ..keys.below("") };
    loop {
        let answer = match connection.range(request.clone(), until).await {
            Ok(answer) => answer,
            Err(fault) => return Ok(Err(fault)),
        };
        if at == 0 {
            at = answer.header.map_or(0, |header| header.revision);
            request.revision = at;
        }
        for pair in &answer.kvs {
            image.take(pair)?;
        }
        let Some(last) = answer.kvs.last().filter(|_| answer.more) else { break };
        let mut next = last.key.to_vec();
        next.push(0);
        request.key = next.into();
    }
    image.complete(at)?;
    Ok(Ok(image))
}

fn replace_if_other<T: PartialEq>(known: &mut T, new: T) -> bool {
    let is_other = *known != new;
    if is_other {
        *known = new;
    }
    is_other
}

/// An error with what has caused it.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
