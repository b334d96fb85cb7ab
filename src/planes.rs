//! The planes of a node: each follows the bus, puts what it sees into effect, and reports back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use mesonet_bus::{Feed, Subscriber};
use mesonet_dns_server::{Server, StartError};
use mesonet_lb_dataplane::{
    EbpfSettings, Inspector, KernelHold, LoadBalancer, PacketBalancer, PacketSettings, PinningError, Question,
};
use mesonet_model::{AgentId, ClusterId, ClusterView, Plane, Revision};
use prometheus::Registry;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::cgroup_mount;
use crate::config::{Datapath, Interfaces, SocketOptions, Switch};
use crate::roles::AppliedMark;
use crate::sources::SourceState;

/// How long a balancer waits for a view as new as what is in the kernel, before it begins with an older one.
const OLDER_VIEW_HOLD: Duration = Duration::from_secs(10);

/// What is wrong where packets are a must.
const PACKETS_REFUSED: &str = "the kernel does not balance packets (--packet-interface)";

/// Starts to answer for names: SERVFAIL until the plane follows.
///
/// # Errors
/// When an address is taken or not this machine's, or the settings are wrong.
pub async fn start_dns(config: mesonet_dns_server::Config, metrics: &Registry) -> anyhow::Result<Server> {
    let addresses: Vec<String> = config.listen.iter().map(SocketAddr::to_string).collect();
    Server::start(config, metrics).await.map_err(|error| {
        let hint = match &error {
            StartError::Bind { .. } => " (choose another address with --dns)",
            _ => "",
        };
        anyhow!(error).context(format!("cannot serve names on {}{hint}", addresses.join(" and ")))
    })
}

/// What balances, if a data path is wanted. `auto` means the kernel where a cgroup for it is named and the kernel
/// agrees, with the proxy for whom its hooks do not see where packets are not balanced; and the proxy alone elsewhere.
///
/// # Errors
/// When the kernel is wanted and refuses.
pub fn load_balancer(
    datapath: Datapath,
    sockets: &SocketOptions,
    metrics: &Registry,
) -> anyhow::Result<Option<LoadBalancer>> {
    let has_packets = sockets.packet_interface.is_some();
    if !has_packets {
        leave_packets(sockets);
    }
    if matches!(datapath, Datapath::None | Datapath::Proxy)
        || datapath == Datapath::Auto && sockets.cgroup.is_none()
    {
        leave_sockets(sockets);
    }
    let takes_kernel = match datapath {
        Datapath::None | Datapath::Proxy => has_packets,
        Datapath::Auto => has_packets || sockets.cgroup.is_some(),
        Datapath::Ebpf => true,
    };
    let hold = match takes_kernel.then(|| KernelHold::take(&sockets.bpffs)).transpose() {
        Ok(hold) => hold,
        Err(error) if datapath == Datapath::Auto => {
            let error = format!("{:#}", anyhow!(error));
            tracing::warn!(error, "The kernel does not balance; the proxy does");
            let why = format!("auto: the kernel does not balance: {error}");
            let balancer = LoadBalancer::proxy(metrics).because(why);
            return Ok(Some(if has_packets { balancer.without_packets(&error) } else { balancer }));
        }
        Err(error) if datapath == Datapath::Ebpf => {
            return Err(anyhow!(error).context("the kernel does not balance (use --datapath proxy)"));
        }
        Err(error) => return Err(anyhow!(error).context(PACKETS_REFUSED)),
    };
    let settings = |cgroup| EbpfSettings { cgroup, bpffs: sockets.bpffs.clone() };
    let balancer = match (datapath, sockets.cgroup.clone()) {
        (Datapath::None, _) if !has_packets => return Ok(None),
        (Datapath::None, _) => {
            LoadBalancer::memory(metrics).because("none was asked for but for packets (--datapath none)")
        }
        (Datapath::Proxy, _) => LoadBalancer::proxy(metrics),
        (Datapath::Auto, None) => {
            LoadBalancer::proxy(metrics).because("auto: no cgroup is named for the kernel (--cgroup)")
        }
        (Datapath::Auto, Some(cgroup)) => LoadBalancer::ebpf_or_proxy(&settings(cgroup), metrics),
        (Datapath::Ebpf, cgroup) => {
            let cgroup = cgroup
                .or_else(cgroup_mount::find)
                .context("no cgroup (version 2) is mounted: name one with --cgroup")?;
            LoadBalancer::ebpf(&settings(cgroup), metrics)
                .context("the kernel does not balance (use --datapath proxy)")?
        }
    };
    let balancer = with_packets(balancer, datapath, sockets, metrics)?.holding(hold);
    // What the hooks do not see is the proxy's, if nothing better is there and nobody has asked for the hooks alone.
    let is_mixed = datapath == Datapath::Auto && balancer.packets().is_none();
    Ok(Some(if is_mixed { balancer.with_proxy_beside() } else { balancer }))
}

/// Has the kernel balance no packets any more, where a daemon before had it do so that has ended.
fn leave_packets(sockets: &SocketOptions) {
    if let Err(error) = PacketBalancer::remove_unused(&sockets.bpffs) {
        let path = sockets.bpffs.display();
        tracing::warn!(%error, %path, "Cannot remove the programs for packets that a daemon has left");
    }
}

/// Has the kernel balance no sockets any more, where a daemon before had it do so that has ended.
fn leave_sockets(sockets: &SocketOptions) {
    let path = sockets.bpffs.display();
    let hold = match KernelHold::take_present(&sockets.bpffs) {
        Ok(Some(hold)) => hold,
        Ok(None) => return,
        Err(PinningError::Held { .. }) => {
            tracing::info!(%path, "Another daemon has programs in the kernel");
            return;
        }
        Err(error) => {
            tracing::warn!(error = format!("{:#}", anyhow!(error)), %path, "Cannot see whether a daemon has left hooks");
            return;
        }
    };
    if let Err(error) = mesonet_lb_dataplane::remove_hooks(&sockets.bpffs) {
        tracing::warn!(%error, %path, "Cannot remove the hooks that a daemon has left");
    }
    drop(hold);
}

/// Has the kernel balance packets, too, if interfaces are named. With `auto` that is no must.
fn with_packets(
    balancer: LoadBalancer,
    datapath: Datapath,
    sockets: &SocketOptions,
    metrics: &Registry,
) -> anyhow::Result<LoadBalancer> {
    let Some(Interfaces(interfaces)) = &sockets.packet_interface else { return Ok(balancer) };
    let settings = PacketSettings {
        interfaces: interfaces.clone(),
        mode: sockets.packet_mode.0,
        masquerade: sockets.packet_masquerade == Switch::On,
        bpffs: sockets.bpffs.clone(),
    };
    match PacketBalancer::start(&settings) {
        Ok(packets) => {
            packets.register(metrics).context("cannot register metrics")?;
            Ok(balancer.with_packets(packets))
        }
        Err(error) if datapath == Datapath::Auto => {
            let error = format!("{:#}", anyhow!(error));
            tracing::warn!(error, "The kernel does not balance packets");
            Ok(balancer.without_packets(&error))
        }
        Err(error) => Err(anyhow!(error).context(PACKETS_REFUSED)),
    }
}

/// What a balancer that begins knows of one before it.
#[derive(Debug)]
pub struct Resumption {
    /// Where it is noted which view is carried out.
    mark: AppliedMark,
    /// The cluster, if its view on disk is known.
    cluster: Option<ClusterId>,
    /// What the view comes from, if that knows no revisions.
    source: Option<watch::Receiver<SourceState>>,
}

impl Resumption {
    /// With what the node's directory says, and the view that the balancer begins with, if one is known.
    pub fn of(dir: &Path, kept: Option<&ClusterView>) -> Self {
        Self { mark: AppliedMark::of(dir), cluster: kept.map(|view| view.cluster.clone()), source: None }
    }

    /// Where revisions are the node's own count: the newest view is whatever the source confirms.
    #[must_use]
    pub fn confirmed_by(self, source: Option<watch::Receiver<SourceState>>) -> Self {
        Self { source, ..self }
    }

    /// Waits until there is a view as new as the one that is in effect, at most so long. What is in the kernel goes on
    /// meanwhile.
    async fn wait_for_view(&self, subscriber: &mut Subscriber, most: Duration) {
        // If no view is on disk, the first one is a master's.
        let Some(cluster) = &self.cluster else { return };
        let revision = self.mark.read(cluster);
        let arrives = async {
            tokio::select! {
                biased;
                () = subscriber.reaches(revision) => {}
                () = self.is_confirmed() => {}
            }
        };
        if tokio::time::timeout(most, arrives).await.is_err() {
            tracing::warn!(%revision, "Balancing by an older view than before, because nobody confirms a newer one");
        }
    }

    /// Waits until a source that knows no revisions has said how things are; it has published that by then.
    async fn is_confirmed(&self) {
        let Some(source) = &self.source else { return std::future::pending().await };
        let _ = source.clone().wait_for(|state| *state == SourceState::Confirmed).await;
    }
}

/// Starts to balance. Returns whom to ask about it, if anything balances. `resumption` is of what outlives a process.
pub fn start_lb(
    balancer: Option<LoadBalancer>,
    feed: &Feed,
    node: &AgentId,
    resumption: Option<Resumption>,
    tasks: &mut JoinSet<()>,
) -> Option<Inspector> {
    let balancer = balancer?.on_node(node.clone());
    let resumption = resumption.filter(|_| balancer.outlives_process());
    let subscriber = feed.subscribe(node.clone(), Plane::Lb);
    let (inspector, questions) = mesonet_lb_dataplane::inspection();
    tasks.spawn(follow_with_lb(balancer, subscriber, resumption, questions));
    Some(inspector)
}

/// What a plane beside its control plane is told of its view's age.
pub fn always_fresh() -> watch::Receiver<bool> {
    watch::channel(false).1
}

/// Serves names until the control plane is gone. Answers are marked while `stale` says so.
pub async fn follow_with_dns(
    mut server: Server,
    mut subscriber: Subscriber,
    mut stale: watch::Receiver<bool>,
) {
    loop {
        tokio::select! {
            update = subscriber.next() => {
                let Some(update) = update else { return };
                server.apply(&update.view, &update.delta);
                subscriber.report(update.view.revision, BTreeSet::new(), BTreeMap::new()).await;
            }
            Ok(()) = stale.changed() => server.set_stale(*stale.borrow_and_update()),
        }
    }
}

/// Balances services until the control plane is gone, and answers questions. Reports also when connections of draining
/// endpoints end, and when services that failed are in effect after all.
async fn follow_with_lb(
    mut balancer: LoadBalancer,
    mut subscriber: Subscriber,
    resumption: Option<Resumption>,
    mut questions: mpsc::Receiver<Question>,
) {
    let mut mark = None;
    if let Some(resumption) = resumption {
        resumption.wait_for_view(&mut subscriber, OLDER_VIEW_HOLD).await;
        mark = Some(resumption.mark);
    }
    let (mut busy, mut started) = (balancer.busy(), balancer.started());
    let mut failed = BTreeMap::new();
    let mut applied = Revision::ZERO;
    loop {
        let deadline = balancer.deadline().0;
        // Of what is there, if anything is.
        let look = async {
            tokio::select! {
                Ok(()) = started.changed() => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        };
        tokio::select! {
            update = subscriber.next() => {
                let Some(update) = update else { return };
                if let Some(mark) = &mut mark {
                    mark.write(&update.view);
                }
                failed = balancer.apply(&update.view, &update.delta).await;
                applied = update.view.revision;
            }
            Ok(()) = busy.changed() => {}
            Some(question) = questions.recv() => {
                balancer.answer(question);
                continue;
            }
            () = look => {
                let failed_before = std::mem::replace(&mut failed, balancer.observe().await);
                if failed == failed_before {
                    continue;
                }
            }
        }
        busy.mark_unchanged();
        subscriber.report(applied, balancer.busy_now(), failed.clone()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings as _, SocketSettings};

    /// What is told where packets are to be balanced, and there is no BPF file system for that.
    fn refused(datapath: Datapath) -> anyhow::Result<Option<LoadBalancer>> {
        let dir = tempfile::tempdir().expect("directory");
        let sockets = SocketOptions {
            bpffs: dir.path().to_owned(),
            packet_interface: Some("eth0".parse().expect("a name")),
            ..SocketSettings::default().with_defaults()
        };
        load_balancer(datapath, &sockets, &Registry::new())
    }

    #[tokio::test]
    async fn packets_that_are_refused_are_an_error_or_told_with_the_reason() {
        for datapath in [Datapath::None, Datapath::Proxy] {
            let error = refused(datapath).expect_err("nobody balances packets").to_string();
            assert!(error.contains("--packet-interface"), "{error}");
        }
        let mut balancer = refused(Datapath::Auto).expect("the proxy balances").expect("it does");
        let (answer, routes) = tokio::sync::oneshot::channel();
        balancer.answer(Question::Routes(answer));
        let told = routes.await.expect("an answer").datapath.packets;
        let [told] = &told[..] else { panic!("one sentence: {told:?}") };
        assert!(told.starts_with("nothing: ") && told.contains("BPF file system"), "{told}");
    }

    fn view(revision: u64) -> ClusterView {
        let mut view = ClusterView::empty(ClusterId::new("c"));
        view.revision = Revision(revision);
        view
    }

    #[tokio::test]
    async fn what_is_in_the_kernel_gives_way_to_no_older_view_while_a_master_answers() {
        let dir = tempfile::tempdir().expect("directory");
        AppliedMark::of(dir.path()).write(&view(7));
        let (long, short) = (Duration::from_secs(3600), Duration::from_millis(10));
        for (kept, told, most, begins_with) in [
            (7, None, long, 7),
            (8, None, long, 8),
            (5, Some(7), long, 7),
            (5, Some(6), short, 6),
            (5, None, short, 5),
        ] {
            let (views, feed, _reports) = mesonet_bus::channel();
            views.publish(view(kept));
            let mut subscriber = feed.subscribe(AgentId::new("n"), Plane::Lb);
            let resumption = Resumption::of(dir.path(), Some(&view(kept)));
            let master = async { told.into_iter().for_each(|revision| views.publish(view(revision))) };
            // The follower is looked at first: if it does not wait, it takes what is there.
            let follower = async {
                resumption.wait_for_view(&mut subscriber, most).await;
                subscriber.next().await.expect("a view").view.revision
            };
            let (first, ()) = tokio::join!(biased; follower, master);
            assert_eq!(first, Revision(begins_with), "{kept}, {told:?}");
        }
    }

    #[tokio::test]
    async fn a_source_without_revisions_is_waited_for_until_it_has_said_how_things_are() {
        let dir = tempfile::tempdir().expect("directory");
        AppliedMark::of(dir.path()).write(&view(9));
        // Things are as they were, and things have changed: the count went on from the view on disk.
        for (told, begins_with) in [(None, 5), (Some(6), 6)] {
            let (views, feed, _reports) = mesonet_bus::channel();
            views.publish(view(5));
            let mut subscriber = feed.subscribe(AgentId::new("n"), Plane::Lb);
            let (state, source) = watch::channel(SourceState::Unknown);
            let resumption = Resumption::of(dir.path(), Some(&view(5))).confirmed_by(Some(source));
            let answers = async {
                told.into_iter().for_each(|revision| views.publish(view(revision)));
                state.send_replace(SourceState::Confirmed);
            };
            let follower = async {
                resumption.wait_for_view(&mut subscriber, Duration::from_secs(3600)).await;
                subscriber.next().await.expect("a view").view.revision
            };
            let (first, ()) = tokio::join!(biased; follower, answers);
            assert_eq!(first, Revision(begins_with), "{told:?}");
        }
    }
}
