//! The records that a network daemon would serve from a source, without one.

use std::io::Write;

use anyhow::{Context as _, anyhow, bail};
use mesonet_bus::Feed;
use mesonet_dns_zone::ZoneFollower;
use mesonet_model::{ClusterId, ClusterView, Delta};
use prometheus::Registry;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Grace, Source};
use crate::dns_api;
use crate::net_plan::NetPlan;
use crate::sources::{self, Sink, SourceMetrics, SourceState};

/// The form in which records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordsForm {
    /// One on a line, as in a zone file.
    ZoneFile,
    /// A list of objects with name, host and rtype: addresses and ports.
    Json,
}

/// Reads the source of a plan once and writes all records, sorted.
///
/// # Errors
/// When the source cannot be read, says nothing in time, or is a cluster of mesonet, which only tells its nodes.
pub fn write_records(plan: &NetPlan, form: RecordsForm, out: &mut dyn Write) -> anyhow::Result<()> {
    let source = match &plan.options.source {
        None | Some(Source::Mesonet(_)) => {
            bail!("only a Mesos cluster or a file can be read without a network daemon")
        }
        Some(source) => source,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let view = runtime.block_on(read_once(source, plan));
    // A name that is being looked up would only hold up the end.
    runtime.shutdown_background();
    let view = view?;
    let zone = plan.zone()?;
    let mut follower =
        ZoneFollower::new(&zone, &plan.own_addresses()).context("the zone's settings are wrong")?;
    let nothing = ClusterView::empty(view.cluster.clone());
    follower.apply(&view, &Delta::between(&nothing, &view));
    let written = match form {
        RecordsForm::ZoneFile => dns_api::zone_file(&follower.zone(), out),
        RecordsForm::Json => dns_api::records(&follower.zone(), out),
    };
    written.context("cannot write the records")
}

async fn read_once(source: &Source, plan: &NetPlan) -> anyhow::Result<ClusterView> {
    let metrics = SourceMetrics::register(&Registry::new()).context("cannot register metrics")?;
    let (publisher, feed, _reports) = mesonet_bus::channel();
    let nothing = ClusterView::empty(ClusterId::new(source.to_string()));
    let (sink, state) = Sink::new(publisher, nothing, metrics);
    let mut tasks = JoinSet::new();
    sources::start(source, plan, sink, &mut tasks)?;
    let Grace(patience) = plan.options.source_timeout;
    match tokio::time::timeout(patience, first_view(state, &feed)).await {
        Ok(view) => view,
        Err(_) => bail!("{source} has not said how things are within {} s", patience.as_secs()),
    }
}

async fn first_view(mut state: watch::Receiver<SourceState>, feed: &Feed) -> anyhow::Result<ClusterView> {
    let reached = state.wait_for(|state| *state != SourceState::Unknown).await;
    if let SourceState::Lost(error) = &*reached.context("BUG: the source has ended")? {
        return Err(anyhow!("{error}"));
    }
    let view = feed.newest().context("BUG: a source was reached and said nothing")?;
    Ok(view.as_ref().clone())
}
