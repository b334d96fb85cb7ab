//! Who is let in, and who is put out.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesonet_model::{AgentId, Timestamp};
use quinn::Connection;
use rustls::pki_types::CertificateDer;

use super::duty::Duty;
use super::{Hall, connection};
use crate::pki::{CertifyError, Holder};
use crate::reason::{Reason, Refusal};
use crate::wire::{self, FromMaster, Hello, Join};
use crate::{PlaneNews, Role, clock};

/// Who a connection's peer is, if it has a certificate. That it is genuine was checked by TLS.
pub(super) fn peer(connection: &Connection) -> Result<Option<Holder>, Refusal> {
    let chain = connection.peer_identity().and_then(|it| it.downcast::<Vec<CertificateDer<'static>>>().ok());
    let Some(certificate) = chain.as_ref().and_then(|chain| chain.first()) else { return Ok(None) };
    let holder = Holder::of(certificate);
    holder.map(Some).map_err(|error| Refusal::new(Reason::Cluster, error.to_string()))
}

/// Lets a node in by its certificate. Returns the version to speak and the agent that is known to run there.
pub(super) async fn admit(
    hall: &Arc<Hall>,
    holder: &Holder,
    hello: &Hello,
) -> Result<(u32, Option<AgentId>), Refusal> {
    let version = version(hello.versions)?;
    if holder.cluster != *hall.house.authority.cluster() {
        return Err(Refusal::new(
            Reason::Cluster,
            format!("the certificate is of cluster {}", holder.cluster),
        ));
    }
    if holder.name != hello.node {
        let text = format!("the certificate is for node {}, not for {}", holder.name, hello.node);
        return Err(Refusal::new(Reason::Role, text));
    }
    if !holder.roles.contains(&hello.role) {
        let text = format!("the certificate of {} is not for role {}", holder.name, hello.role);
        return Err(Refusal::new(Reason::Role, text));
    }
    check_time(holder, hello.time)?;
    Ok((version, check(hall, holder).await?))
}

/// Whether a node's certificate is not revoked, and the agent that is known to run there.
pub(super) async fn check(hall: &Arc<Hall>, holder: &Holder) -> Result<Option<AgentId>, Refusal> {
    if is_master(holder) {
        return Ok(None);
    }
    let (hall, holder) = (hall.clone(), holder.clone());
    blocking(move || hall.house.authority.check(&holder)).await
}

/// Masters hold the authority's key and give themselves their certificates, of which nobody keeps a record.
fn is_master(holder: &Holder) -> bool {
    holder.roles.contains(&Role::Master)
}

/// Lets a node join by its token.
pub(super) async fn join(hall: &Arc<Hall>, join: Join) -> Result<FromMaster, Refusal> {
    version(join.versions)?;
    let Ok(_permit) = hall.house.joining.try_acquire() else {
        return Err(Refusal::new(Reason::Busy, "too many nodes join at the same time"));
    };
    let worker = hall.clone();
    let certificate = blocking(move || {
        let lifetime = worker.house.settings.certificate_lifetime;
        worker.house.authority.enrol(&join.token, &join.secret, &join.node, &join.request, lifetime)
    })
    .await?;
    hall.house.counters.count(|stats| stats.joined += 1);
    let authority = hall.house.authority.certificate().to_vec();
    Ok(FromMaster::Joined { certificate: certificate.to_vec(), authority })
}

/// Gives a connected node a new certificate.
pub(super) async fn renew(
    hall: &Arc<Hall>,
    holder: &Holder,
    request: Vec<u8>,
) -> Result<(FromMaster, Holder), Refusal> {
    let (worker, holder) = (hall.clone(), holder.clone());
    let certificate = blocking(move || {
        worker.house.authority.renew(&holder, &request, worker.house.settings.certificate_lifetime)
    })
    .await?;
    hall.house.counters.count(|stats| stats.renewed += 1);
    let holder =
        Holder::of(&certificate).map_err(|error| Refusal::new(Reason::Internal, error.to_string()))?;
    Ok((FromMaster::Renewed { certificate: certificate.to_vec() }, holder))
}

/// Ends the connections of nodes that are revoked.
pub(super) async fn cut_revoked(hall: &Arc<Hall>) {
    let links = hall.registry().links();
    let nodes = links.iter().filter(|(.., link)| !is_master(&link.holder));
    let holders: BTreeMap<usize, Holder> =
        nodes.map(|(.., link)| (link.connection.stable_id(), link.holder.clone())).collect();
    let worker = hall.clone();
    let checking = tokio::task::spawn_blocking(move || {
        let check = |(id, holder)| Some((id, worker.house.authority.check(&holder).err().map(refusal)?));
        holders.into_iter().filter_map(check).collect::<BTreeMap<usize, Refusal>>()
    });
    let refused = checking.await.expect("BUG: nodes cannot be checked");
    for (.., link) in links {
        if let Some(refusal) = refused.get(&link.connection.stable_id()) {
            connection::cut(hall, &link.connection, refusal.reason, &refusal.text);
        }
    }
}

/// Tells the control plane which nodes are revoked, if this master leads.
pub(super) async fn tell_revoked(hall: &Arc<Hall>) {
    if !matches!(hall.duty, Duty::Leading { .. }) {
        return;
    }
    let worker = hall.clone();
    let reading = tokio::task::spawn_blocking(move || worker.house.authority.nodes());
    let nodes = match reading.await.expect("BUG: nodes cannot be read") {
        Ok(nodes) => nodes,
        Err(error) => return tracing::error!(%error, "Cannot read which nodes are revoked"),
    };
    for node in nodes.into_iter().filter(|node| node.expires.is_none()) {
        // Fails only when the control plane has ended.
        let _ = hall.feed.reports.send(PlaneNews::Revoked { node: AgentId::new(node.name.as_str()) }).await;
    }
}

/// Ends the connections of nodes that have not renewed their certificate in time.
pub(super) fn cut_expired(hall: &Arc<Hall>, now: Timestamp) {
    for (.., link) in hall.registry().links() {
        if link.holder.not_after < now {
            let text = format!("the certificate has expired at {}", link.holder.not_after);
            connection::cut(hall, &link.connection, Reason::CertificateTime, &text);
        }
    }
}

fn version(versions: (u32, u32)) -> Result<u32, Refusal> {
    wire::common_version(versions).ok_or_else(|| {
        let (oldest, newest) = versions;
        let text = format!(
            "the node speaks versions {oldest} to {newest}, the master {} to {}",
            wire::VERSION_OLDEST,
            wire::VERSION_NEWEST
        );
        Refusal::new(Reason::Version, text)
    })
}

fn check_time(holder: &Holder, node_time: Timestamp) -> Result<(), Refusal> {
    let now = clock::now();
    if (holder.not_before..=holder.not_after).contains(&now) {
        return Ok(());
    }
    let (apart, which) =
        if node_time > now { (node_time.since(now), "ahead of") } else { (now.since(node_time), "behind") };
    let text = format!(
        "the certificate is valid from {} to {}, the master's clock reads {now}; the node's clock is {} s {which} it",
        holder.not_before,
        holder.not_after,
        apart.as_secs()
    );
    Err(Refusal::new(Reason::CertificateTime, text))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CertifyError> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work).await.expect("BUG: the authority has failed").map_err(refusal)
}

fn refusal(error: CertifyError) -> Refusal {
    let reason = match &error {
        CertifyError::TokenUnknown | CertifyError::TokenExpired(_) | CertifyError::TokenUsed => Reason::Token,
        CertifyError::NameTaken(_) => Reason::NameTaken,
        CertifyError::Revoked(_) => Reason::Revoked,
        CertifyError::BadRequest(_) => Reason::BadMessage,
        CertifyError::Authority(cause) => {
            tracing::error!(error = %cause, "The authority's files cannot be used");
            // What is wrong with the master's disk is nothing for a node.
            return Refusal::new(Reason::Internal, "the master cannot use its authority, see its log");
        }
    };
    Refusal::new(reason, error.to_string())
}
