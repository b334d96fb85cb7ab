//! Views and deltas as frames, encoded once for all subscribers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use mesonet_model::{ClusterView, Delta, Revision};
use tokio::sync::{OnceCell, watch};

use crate::Feed;
use crate::wire::{self, ViewMessage};

/// How many views are remembered, so that a node that was away gets what has changed and not everything. They share
/// structure: each costs what differs from the next, some kilobytes.
pub(crate) const VIEWS_MAX: usize = 2048;

/// The newest views, and frames that lead to the newest one.
#[derive(Debug)]
pub(crate) struct ViewFrames {
    newest: watch::Sender<Option<Arc<ClusterView>>>,
    recent: Mutex<VecDeque<Arc<ClusterView>>>,
    cache: Mutex<Cache>,
}

/// Frames to one revision by where they start. There are at most as many as there are remembered views and one.
#[derive(Debug, Default)]
struct Cache {
    to: Revision,
    frames: BTreeMap<Option<Revision>, Arc<OnceCell<Bytes>>>,
    encodings: u64,
}

/// A frame, and what it is.
#[derive(Debug, Clone)]
pub(crate) struct ViewFrame {
    pub(crate) bytes: Bytes,
    pub(crate) is_snapshot: bool,
}

impl ViewFrames {
    pub(crate) fn new() -> Self {
        Self { newest: watch::Sender::new(None), recent: Mutex::default(), cache: Mutex::default() }
    }

    /// Remembers what is published, until that ends.
    pub(crate) async fn follow(&self, mut feed: Feed) {
        loop {
            let view = feed.views.borrow_and_update().clone();
            if let Some(view) = view {
                self.remember(view);
            }
            if feed.views.changed().await.is_err() {
                return;
            }
        }
    }

    fn remember(&self, view: Arc<ClusterView>) {
        let mut recent = lock(&self.recent);
        // Who has begun to lead repeats the newest view before it publishes its own.
        if recent.back().is_some_and(|newest| newest.revision >= view.revision) {
            return;
        }
        if recent.len() == VIEWS_MAX {
            recent.pop_front();
        }
        recent.push_back(view.clone());
        drop(recent);
        self.newest.send_replace(Some(view));
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<ClusterView>>> {
        self.newest.subscribe()
    }

    pub(crate) fn newest(&self) -> Option<Arc<ClusterView>> {
        self.newest.borrow().clone()
    }

    /// How many frames were made.
    pub(crate) fn encodings(&self) -> u64 {
        lock(&self.cache).encodings
    }

    /// What leads from a revision to a view: a delta if that revision is remembered, else a snapshot.
    pub(crate) async fn frame(&self, from: Option<Revision>, to: &Arc<ClusterView>) -> ViewFrame {
        let old = from.and_then(|from| self.remembered(from));
        let is_snapshot = old.is_none();
        let cell = self.cell(old.as_ref().map(|view| view.revision), to.revision);
        let encode = || async {
            let to = to.clone();
            lock(&self.cache).encodings += 1;
            let encoding = tokio::task::spawn_blocking(move || match old {
                Some(old) => wire::encode(&ViewMessage::Delta(Delta::between(&old, &to))),
                None => wire::encode(&ViewMessage::Snapshot(to.as_ref().clone())),
            });
            encoding.await.expect("BUG: a view cannot be encoded")
        };
        ViewFrame { bytes: cell.get_or_init(encode).await.clone(), is_snapshot }
    }

    fn remembered(&self, revision: Revision) -> Option<Arc<ClusterView>> {
        let recent = lock(&self.recent);
        let index = recent.binary_search_by_key(&revision, |view| view.revision).ok()?;
        recent.get(index).cloned()
    }

    fn cell(&self, from: Option<Revision>, to: Revision) -> Arc<OnceCell<Bytes>> {
        let mut cache = lock(&self.cache);
        if to < cache.to {
            // Who is about to be behind again gets a frame of its own.
            return Arc::default();
        }
        if to > cache.to {
            cache.to = to;
            cache.frames.clear();
        }
        cache.frames.entry(from).or_default().clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
