//! One attempt to connect, and the connection if it succeeds.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use mesonet_model::Timestamp;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;

use super::dial::{Ground, LinkError, dial};
use super::ends::{Ends, Inward, Outward};
use super::{Keeper, describe};
use crate::pki::{self, Applicant};
use crate::wire::{self, First, FromMaster, FromNode, Hello};
use crate::{Role, clock, files};

/// From the first packet to the master's welcome.
const WELCOME_MAX: Duration = Duration::from_secs(10);

/// Clocks that differ by more are worth a warning: certificates begin an hour in the past.
const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(60);

/// Between attempts to renew a certificate, and at most between looks at the clock, which may be set.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

/// A connection that is welcome.
struct Welcomed {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
    renew_at: Timestamp,
    term: Option<u64>,
}

/// Connects and serves until the connection ends. Returns why there is none any more.
pub(super) async fn connect_and_serve(
    keeper: &mut Keeper,
    master: &str,
    handshake_max: Duration,
    ends: &mut Ends,
) -> LinkError {
    let welcomed = tokio::time::timeout(WELCOME_MAX, connect(keeper, master, handshake_max, ends)).await;
    let (_ground, welcomed) = match welcomed {
        Ok(Ok(welcomed)) => welcomed,
        Ok(Err(error)) => return error,
        Err(_) => return LinkError::Silent,
    };
    if let Err(newest) = keeper.terms.hear(welcomed.term, Instant::now()) {
        let term = welcomed.term.unwrap_or_default();
        welcomed.connection.close(0_u32.into(), b"");
        return LinkError::Deposed { term, newest };
    }
    keeper.connected(master);
    let connection = welcomed.connection.clone();
    let files = ends.files();
    let error = match ends.open().await {
        Ok((inward, outward)) => tokio::select! {
            error = serve(keeper, welcomed, inward, outward) => error,
            error = files::answer_all(&connection, files.as_ref()) => error,
        },
        Err(error) => error,
    };
    keeper.terms.confirm(Instant::now());
    // A connection that ends because nothing is heard has been without a master before.
    let silence = if matches!(error, LinkError::Silent) { keeper.idle_timeout } else { Duration::ZERO };
    ends.close(clock::timestamp(SystemTime::now() - silence));
    connection.close(0_u32.into(), b"");
    error
}

async fn connect(
    keeper: &Keeper,
    master: &str,
    handshake_max: Duration,
    ends: &Ends,
) -> Result<(Ground, Welcomed), LinkError> {
    let identity = keeper.credentials.identity()?;
    let (node, renew_at) = (identity.holder.name.clone(), identity.holder.renew_at());
    let tls = pki::client_config(identity)?;
    let dialling = tokio::time::timeout(handshake_max, dial(master, tls, keeper.idle_timeout)).await;
    let (ground, connection) = dialling.unwrap_or(Err(LinkError::Silent))?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let hello = Hello {
        versions: (wire::VERSION_OLDEST, wire::VERSION_NEWEST),
        role: keeper.role,
        node,
        known: ends.known(),
        time: clock::now(),
    };
    if wire::send(&mut send, &First::Hello(hello)).await.is_err() {
        return Err(LinkError::of_end(&connection).await);
    }
    let welcome = wire::receive(&mut receive, wire::FIRST_FRAME_BYTES_MAX).await;
    let term = match welcome.map_err(|error| LinkError::of_receive(&connection, &error))? {
        FromMaster::Welcome { version, time, term } => {
            warn_of_clocks(time);
            tracing::debug!(version, term, "The master welcomes the node");
            term
        }
        FromMaster::Joined { .. } | FromMaster::Renewed { .. } | FromMaster::Command(_) => {
            return Err(LinkError::Message("it is no welcome".to_owned()));
        }
    };
    Ok((ground, Welcomed { connection, send, receive, renew_at, term }))
}

fn warn_of_clocks(master: Timestamp) {
    let here = clock::now();
    let apart = here.since(master).max(master.since(here));
    if apart > CLOCK_DIFFERENCE_MAX {
        tracing::warn!(%here, %master, ?apart, "This node's clock and the master's differ");
    }
}

async fn serve(keeper: &Keeper, welcomed: Welcomed, inward: Inward<'_>, outward: Outward<'_>) -> LinkError {
    let Welcomed { connection, send, mut receive, renew_at, term: _ } = welcomed;
    let (renewed, renew_at) = watch::channel(renew_at);
    let hears_views = matches!(keeper.role, Role::Net | Role::Master);
    let speaking = speak(send, outward, renew_at, keeper.credentials.renewable());
    let hearing = async {
        if hears_views {
            // Network daemons and masters are told nothing but views and answers; both streams are heard at the same time.
            let views = hear_views(keeper, &connection, inward);
            let answers = hear(keeper, &connection, &mut receive, None, &renewed);
            tokio::select! {
                error = views => error,
                error = answers => error,
            }
        } else {
            hear(keeper, &connection, &mut receive, Some(&inward), &renewed).await
        }
    };
    tokio::select! {
        error = hearing => error,
        error = speaking => match error {
            Some(error) => error,
            None => LinkError::of_end(&connection).await,
        },
    }
}

/// Says what there is to say. `None` when the stream has ended, of which the connection knows more.
async fn speak(
    mut send: SendStream,
    mut outward: Outward<'_>,
    mut renew_at: watch::Receiver<Timestamp>,
    renewable: Option<PathBuf>,
) -> Option<LinkError> {
    let mut asked_at: Option<Instant> = None;
    loop {
        let due = renew_at.borrow_and_update().since(clock::now()).min(RENEWAL_INTERVAL);
        let due = if renewable.is_some() { due } else { RENEWAL_INTERVAL };
        let wait = asked_at.map_or(due, |at| due.max(RENEWAL_INTERVAL.saturating_sub(at.elapsed())));
        let message = tokio::select! {
            message = outward.next() => match message {
                Some(message) => message,
                None => return Some(LinkError::Closed),
            },
            changed = renew_at.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Some(LinkError::Closed),
            },
            () = tokio::time::sleep(wait) => {
                let Some(identity) = renewable.clone().filter(|_| *renew_at.borrow() <= clock::now()) else {
                    continue;
                };
                match request(identity).await {
                    Ok(request) => {
                        // Not again soon: by a clock that is ahead, the new one is due at once, too.
                        asked_at = Some(Instant::now());
                        FromNode::Renew { request }
                    }
                    Err(error) => return Some(error),
                }
            }
        };
        if wire::send(&mut send, &message).await.is_err() {
            return None;
        }
    }
}

async fn request(identity: PathBuf) -> Result<Vec<u8>, LinkError> {
    let make = tokio::task::spawn_blocking(move || Applicant::renewing(&identity)?.request());
    Ok(make.await.expect("BUG: a certificate request cannot be made")?)
}

async fn hear(
    keeper: &Keeper,
    connection: &Connection,
    receive: &mut RecvStream,
    inward: Option<&Inward<'_>>,
    renewed: &watch::Sender<Timestamp>,
) -> LinkError {
    loop {
        let message = match wire::receive(receive, wire::FRAME_BYTES_MAX).await {
            Ok(message) => message,
            Err(error) => return LinkError::of_receive(connection, &error),
        };
        let heard = match (message, inward) {
            (FromMaster::Command(command), Some(inward)) => inward.command(command).await,
            (FromMaster::Renewed { certificate }, _) => match keep(keeper, certificate, renewed).await {
                Err(error @ LinkError::Identity(_)) => {
                    // The old one is good for a while, and a disk that is full may not stay so.
                    let error = describe(&error);
                    tracing::warn!(error, "Cannot keep the node's new certificate, trying again");
                    Ok(())
                }
                kept => kept,
            },
            (FromMaster::Welcome { .. } | FromMaster::Joined { .. } | FromMaster::Command(_), _) => {
                Err(LinkError::Message("it is not for this node".to_owned()))
            }
        };
        if let Err(error) = heard {
            return error;
        }
    }
}

async fn hear_views(keeper: &Keeper, connection: &Connection, mut inward: Inward<'_>) -> LinkError {
    let mut views = match connection.accept_uni().await {
        Ok(views) => views,
        Err(error) => return error.into(),
    };
    loop {
        let heard = match wire::receive(&mut views, wire::VIEW_FRAME_BYTES_MAX).await {
            Ok(message) => inward.view(message),
            Err(error) => Err(LinkError::of_receive(connection, &error)),
        };
        match heard {
            Ok(true) => keeper.count(|stats| stats.snapshots += 1),
            Ok(false) => keeper.count(|stats| stats.deltas += 1),
            Err(error) => return error,
        }
    }
}

async fn keep(
    keeper: &Keeper,
    certificate: Vec<u8>,
    renewed: &watch::Sender<Timestamp>,
) -> Result<(), LinkError> {
    let Some(dir) = keeper.credentials.renewable() else {
        return Err(LinkError::Message("a certificate that nobody has asked for".to_owned()));
    };
    let keeping = tokio::task::spawn_blocking(move || Applicant::renewing(&dir)?.renew(&certificate));
    let identity = keeping.await.expect("BUG: a certificate cannot be kept")?;
    keeper.count(|stats| stats.renewed += 1);
    renewed.send_replace(identity.holder.renew_at());
    Ok(())
}
