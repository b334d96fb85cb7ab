//! Who leads: whoever has made the key `leader`, until the lease ends that it lives by.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::connection::Fault;
use super::core::{Core, PATIENCE};
use super::keys;
use super::messages::{Compare, RequestOp, TxnRequest};
use super::writer::Writer;
use super::{Candidate, ElectionError, Leader};

/// Between attempts while etcd cannot be reached.
const PAUSE: Duration = Duration::from_millis(100);

/// Between attempts while etcd refuses.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// A lease is renewed so often within its time, so that three answers in a row may be lost.
const RENEWALS_PER_LEASE: u32 = 4;

/// How long a lease that is given up is waited for. If it takes longer, it ends by itself.
const RESIGN_PATIENCE: Duration = Duration::from_secs(1);

/// A won election.
pub(super) struct Won {
    pub(super) writer: Writer,
    pub(super) keeper: Keeper,
}

/// Holds the lease until it is dropped or told to stop.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) lost: watch::Receiver<bool>,
    /// Gives the lease up.
    pub(super) stop: oneshot::Sender<()>,
}

/// A lease as etcd has granted it.
#[derive(Debug, Clone, Copy)]
struct Lease {
    id: i64,
    lifetime: Duration,
    /// It surely lives until then.
    until: Instant,
}

/// Why an attempt has not led to anything.
enum Failure {
    /// Somebody else is the leader; it is known from this change of etcd's on.
    Beaten(i64),
    Fault(Fault),
    /// What etcd has is not known here in time.
    Behind,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Stands for election until it is won.
pub(super) async fn campaign(core: Arc<Core>, me: Candidate) -> Result<Won, ElectionError> {
    let mut leader = core.leader.subscribe();
    loop {
        if leader.wait_for(Option::is_none).await.is_err() {
            return Err(ElectionError::Ended);
        }
        match stand(&core, &me).await {
            Ok(won) => return Ok(won),
            Err(Failure::Beaten(at)) => {
                core.reach(at, Instant::now() + PATIENCE).await;
            }
            Err(Failure::Fault(fault @ Fault::Refused(_))) => {
                tracing::error!(%fault, "Cannot stand for election, trying again");
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            Err(Failure::Fault(fault @ Fault::Silent { .. })) => {
                tracing::debug!(%fault, "Cannot stand for election, trying again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(Failure::Behind) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn stand(core: &Arc<Core>, me: &Candidate) -> Result<Won, Failure> {
    let asked = Instant::now();
    let seconds = core.lease.as_secs_f64().ceil().max(1.0) as i64;
    let granted = core.connection.grant(seconds, asked + PATIENCE).await?;
    let lifetime = Duration::from_secs(granted.ttl.unsigned_abs());
    // It is granted once etcd has answered the last of possibly several attempts, which began after `asked`.
    let lease = Lease { id: granted.id, lifetime, until: asked + lifetime };
    match elect(core, me, &lease).await {
        Ok((fence, term)) => {
            let keeper = keep(core.clone(), lease, term);
            let lost = keeper.lost.clone();
            // The writer starts from the image, so that has to have all that earlier leaders have written.
            if !core.reach(fence, lease.until).await {
                return Err(Failure::Behind);
            }
            let mut writer = Writer::new(core.clone(), fence, term, lost);
            if let Err(error) = writer.take_over().await {
                // The lease may have run out meanwhile; whoever is elected next tries again.
                tracing::warn!(%error, "Cannot complete what an earlier leader has begun");
                return Err(Failure::Behind);
            }
            Ok(Won { writer, keeper })
        }
        Err(failure) => {
            revoke(core, lease.id).await;
            Err(failure)
        }
    }
}

/// Makes the key `leader`; returns the change that made it and the term.
async fn elect(core: &Core, me: &Candidate, lease: &Lease) -> Result<(i64, u64), Failure> {
    let keys = &core.keys;
    let (last_term, term_value, has_format) = {
        let image = core.image();
        (image.term, image.term_value.clone(), image.has_format)
    };
    let term = next_term(last_term);
    let leader = json(&Leader { candidate: me.clone(), term });
    let format = has_format.then(|| json(&keys::FORMAT));
    let mut success = vec![
        RequestOp::leased(keys.key(keys::LEADER), leader, lease.id),
        RequestOp::put(keys.key(keys::TERM), json(&term)),
    ];
    if !has_format {
        success.push(RequestOp::put(keys.key(keys::FORMAT_KEY), json(&keys::FORMAT)));
    }
    let request = TxnRequest {
        compare: vec![
            Compare::created(keys.key(keys::LEADER), 0),
            Compare::value(keys.key(keys::TERM), term_value),
            Compare::value(keys.key(keys::FORMAT_KEY), format),
        ],
        success,
        failure: vec![RequestOp::get(keys.key(keys::LEADER)), RequestOp::get(keys.key(keys::TERM))],
    };
    let answer = core.connection.txn(request, lease.until).await?;
    if answer.succeeded {
        return Ok((answer.revision(), term));
    }
    match answer.got(0) {
        // The answer to an earlier attempt was lost.
        Some(leader) if leader.lease == lease.id => Ok((leader.create_revision, term)),
        leader => {
            let at = [leader, answer.got(1)].into_iter().flatten().map(|pair| pair.mod_revision).max();
            Err(Failure::Beaten(at.unwrap_or(0)))
        }
    }
}

/// A number greater than those before. From the clock, so that it also is when a cluster moves to another etcd; if the
/// clock is wrong, terms count on from the last one.
fn next_term(last: u64) -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since_epoch.as_millis()).unwrap_or(0);
    now.max(last + 1)
}

fn json<T: serde::Serialize>(value: &T) -> bytes::Bytes {
    serde_json::to_vec(value).expect("BUG: a map key is no text").into()
}

/// Renews a lease until it is lost, another leads, or it is given up.
fn keep(core: Arc<Core>, lease: Lease, term: u64) -> Keeper {
    let (lost_in, lost) = watch::channel(false);
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            // Also when it is dropped.
            _ = stopped => {}
            () = renew(&core, lease) => tracing::warn!(term, "The lease of this leader has run out"),
            () = deposed(&core, term) => tracing::warn!(term, "Another leads, or nobody"),
        }
        lost_in.send_replace(true);
        revoke(&core, lease.id).await;
        // Only here, so that it is known to be given up once nobody can say any more that it is lost.
        drop(lost_in);
    });
    Keeper { lost, stop }
}

/// Returns when the lease has not been confirmed for as long as it lives.
async fn renew(core: &Core, lease: Lease) {
    let every = lease.lifetime / RENEWALS_PER_LEASE;
    let mut until = lease.until;
    loop {
        let renewal = async {
            tokio::time::sleep(every).await;
            loop {
                let asked = Instant::now();
                match core.connection.keep_alive(lease.id, every).await {
                    Ok(seconds) if seconds > 0 => break Some(asked + lease.lifetime),
                    // There is no such lease any more.
                    Ok(_) | Err(Fault::Refused(_)) => break None,
                    Err(fault @ Fault::Silent { .. }) => {
                        tracing::debug!(%fault, "Cannot renew the lease, trying again");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        };
        match tokio::time::timeout_at(until, renewal).await {
            Ok(Some(renewed)) => until = renewed,
            Ok(None) | Err(_) => return,
        }
    }
}

/// Returns when a leader is known that is not of this term, after it was.
async fn deposed(core: &Core, term: u64) {
    let is_ours = |leader: &Option<Leader>| leader.as_ref().is_some_and(|leader| leader.term == term);
    let mut leader = core.leader.subscribe();
    // They fail only together with everything else here.
    let _ = leader.wait_for(is_ours).await;
    let _ = leader.wait_for(|leader| !is_ours(leader)).await;
}

async fn revoke(core: &Core, lease: i64) {
    if let Err(fault) = core.connection.revoke(lease, Instant::now() + RESIGN_PATIENCE).await {
        tracing::debug!(%fault, "Cannot give the lease up, it will run out");
    }
}
