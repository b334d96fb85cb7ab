//! The way of a master that stands by to the one that leads: views come down, and what the planes report that are
//! connected here goes up.

use std::time::Duration;

use mesonet_model::ClusterView;
use tokio::sync::{mpsc, watch};

use super::credentials::Credentials;
use super::ends::Ends;
use super::{BACKOFF_FIRST, Client, Keeper, LinkError, attempt};
use crate::{Authority, IdentityError, NodeName, PlaneNews, Publisher, Role};

/// The longest wait between attempts to reach the leader: planes are connected here that the leader has to hear of.
const WAIT_LAST: Duration = Duration::from_secs(1);

/// How long the handshake with the leader may take before it is tried anew.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// How a master that stands by reaches the leader.
#[derive(Debug)]
pub(crate) struct RelaySettings {
    /// The cluster's authority.
    pub(crate) authority: Authority,
    /// This master.
    pub(crate) name: NodeName,
    /// How long its certificate is valid.
    pub(crate) certificate_lifetime: Duration,
    /// A leader that is silent for so long is lost.
    pub(crate) idle_timeout: Duration,
    /// Where the leader is reached, `HOST:PORT`, as soon as that is known.
    pub(crate) leader: watch::Receiver<Option<String>>,
}

/// Follows whoever leads: publishes the leader's views, and passes the reports on. `known` is the newest view that was
/// published already.
///
/// # Errors
/// When the system has no randomness.
pub(crate) fn start_relay(
    settings: RelaySettings,
    known: Option<ClusterView>,
    views: Publisher,
    reports: mpsc::Receiver<PlaneNews>,
) -> Result<Client, IdentityError> {
    let RelaySettings { authority, name, certificate_lifetime, idle_timeout, leader } = settings;
    let credentials = Credentials::Master { authority, name, lifetime: certificate_lifetime };
    let (keeper, mut client) = Keeper::new(credentials, Role::Master, idle_timeout)?;
    client.task = Some(tokio::spawn(follow(keeper, leader, Ends::relay(known, views, reports))));
    Ok(client)
}

async fn follow(mut keeper: Keeper, mut leader: watch::Receiver<Option<String>>, mut ends: Ends) {
    let mut wait = BACKOFF_FIRST;
    loop {
        let target = leader.borrow_and_update().clone();
        let Some(target) = target else {
            let elected = async { drop(leader.changed().await) };
            if ends.idle(elected).await.is_err() || leader.has_changed().is_err() {
                return;
            }
            continue;
        };
        let error = tokio::select! {
            biased;
            changed = leader.changed() => match changed {
                Ok(()) => LinkError::Lost("there is another leader".to_owned()),
                Err(_) => return,
            },
            error = attempt::connect_and_serve(&mut keeper, &target, HANDSHAKE_MAX, &mut ends) => error,
        };
        keeper.disconnected(&target, &error);
        if matches!(error, LinkError::Closed) {
            return;
        }
        let is_other = leader.has_changed().unwrap_or(true) || *leader.borrow() != Some(target);
        if is_other {
            wait = BACKOFF_FIRST;
            continue;
        }
        let elected_or_waited = async {
            drop(tokio::time::timeout(wait, leader.changed()).await);
        };
        if ends.idle(elected_or_waited).await.is_err() {
            return;
        }
        wait = (wait * 2).min(WAIT_LAST);
    }
}
