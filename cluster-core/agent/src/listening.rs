//! Whether tasks listen yet on the ports that they publish.
//!
//! The process of a server runs before the server listens, and a rolling restart must not take the one for the other. So
//! the agent looks at the sockets of a task that has begun, without any connection, until it listens or has had time
//! enough. Ports that have neither a name of their own nor a VIP are not waited for: an app that says nothing of ports has
//! one such.
//! A task with health checks needs none of this.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesonet_model::{AgentReport, Protocol, TaskKey, TaskSpec, TaskState, TaskStatus};
use tokio::task::AbortHandle;

use crate::agent::Agent;
use crate::clock;
use crate::link::{Speaker, What};
use crate::listeners::Listeners;

/// A task that does not listen after this time is taken as one that never will.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name that Marathon gives to the port of an app that says nothing of ports.
const DEFAULT_NAME: &str = "default";

/// How often it is looked at first, and at last.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Tasks on the host's network share what was seen so short a time ago, so that many that begin at once cost no more than
/// one.
const HOST_AGE_MAX: Duration = Duration::from_millis(50);

/// Who listens on the host's network.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostListeners(Arc<Mutex<Option<(Instant, Listeners)>>>);

/// Waits until a task listens. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Lookout(AbortHandle);

impl Drop for Lookout {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a task that has just begun to run says of its listening: not yet, or nothing if nobody will look.
pub(crate) fn expected(spec: &TaskSpec) -> Option<bool> {
    let is_awaited = !spec.health_checked && !awaited_ports(spec).is_empty();
    is_awaited.then_some(false)
}

/// The TCP ports that a task is waited for, in its own network.
fn awaited_ports(spec: &TaskSpec) -> BTreeSet<u16> {
    let published = spec.discovery.iter().flat_map(|discovery| &discovery.ports);
    let awaited = published.filter_map(|port| {
        let service = port.service_port()?;
        let is_named = port.name.as_deref().is_some_and(|name| name != DEFAULT_NAME);
        let is_awaited = is_named || !service.vips.is_empty();
        (is_awaited && service.protocol == Protocol::Tcp).then_some((port.number, service.host_port))
    });
    let mappings = spec.networking.as_ref().map_or(&[][..], |networking| &networking.mappings);
    let own = awaited.map(|(number, host_port)| {
        let mapping = mappings.iter().find(|mapping| Some(mapping.host_port) == host_port);
        mapping.map_or(number, |mapping| mapping.container_port)
    });
    own.collect()
}

impl Agent {
    /// A task that is not known to listen is looked at, unless it is already.
    pub(crate) fn begin_to_look(&mut self, key: &TaskKey, pid: i32) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let latest = task.statuses.latest();
        let Some(run) = task.run.as_mut() else { return };
        if latest.state != TaskState::Running || latest.listening != Some(false) || run.lookout.is_some() {
            return;
        }
        let own = run.addresses();
        let place = Place {
            ports: awaited_ports(&task.spec),
            process: (!own.is_empty()).then(|| pid.to_string()),
            addresses: if own.is_empty() { vec![self.config.address] } else { own },
            host: self.listeners.clone(),
        };
        let container = run.launch.container;
        let speaker = Speaker { task: key.clone(), container, notices: self.notices.clone() };
        let left = PATIENCE.saturating_sub(clock::now().since(latest.timestamp));
        run.lookout = Some(Lookout(tokio::spawn(look(place, left, speaker)).abort_handle()));
    }

    /// A task listens, or is not waited for any more.
    pub(crate) fn looked(&mut self, key: &TaskKey, listening: Option<bool>) {
        let uuid = self.uuids.next_uuid();
        let Some(task) = self.tasks.get_mut(key) else { return };
        let latest = task.statuses.latest();
        if latest.state != TaskState::Running {
            return;
        }
        let status = TaskStatus {
            listening,
            // The master takes what seems older for old, and the clock of this machine may be set back.
            timestamp: clock::now().max(latest.timestamp),
            uuid: Some(uuid),
            ..latest.clone()
        };
        tracing::debug!(task = %key, ?listening, "A task was looked at");
        task.statuses.push(status.clone(), Instant::now());
        self.keep_statuses(key);
        self.outbox.push_back(AgentReport::Status(Box::new(status)));
    }
}

/// Where a task is to listen.
struct Place {
    ports: BTreeSet<u16>,
    addresses: Vec<IpAddr>,
    /// A process in the task's own network namespace; none on the host's network.
    process: Option<String>,
    host: HostListeners,
}

async fn look(place: Place, left: Duration, speaker: Speaker) {
    let until = Instant::now() + left;
    let mut pause = PAUSE_FIRST;
    let listening = loop {
        if place.is_listened_on() {
            break Some(true);
        }
        if Instant::now() >= until {
            break None;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(PAUSE_MAX);
    };
    speaker.say(What::Looked { listening }).await;
}

impl Place {
    fn is_listened_on(&self) -> bool {
        let has_all =
            |listeners: &Listeners| self.ports.iter().all(|port| listeners.has(*port, &self.addresses));
        match &self.process {
            // One that has ended listens nowhere.
            Some(process) => Listeners::of(process).is_ok_and(|listeners| has_all(&listeners)),
            None => self.host.look(has_all),
        }
    }
}

impl HostListeners {
    fn look(&self, judge: impl FnOnce(&Listeners) -> bool) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if seen.as_ref().is_none_or(|(at, _)| now.duration_since(*at) > HOST_AGE_MAX) {
            *seen = Some((now, Listeners::of("thread-self").unwrap_or_default()));
        }
        seen.as_ref().is_some_and(|(_, listeners)| judge(listeners))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::TcpListener;

    use mesonet_model::{
        AgentId, Attachment, Command, Discovery, DiscoveryPort, FrameworkId, PortForward, Resources, TaskId,
        TaskNetworking,
    };
    use uuid::Uuid;

    use super::*;

    fn spec(ports: Vec<DiscoveryPort>) -> TaskSpec {
        TaskSpec {
            key: TaskKey::new(FrameworkId::new("f"), TaskId::new("t")),
            name: "t".to_owned(),
            agent: AgentId::new("a"),
            resources: Resources::default(),
            command: Command::default(),
            image: None,
            discovery: Some(Discovery { ports, ..Discovery::default() }),
            labels: BTreeMap::new(),
            health_checked: false,
            health_checks: Vec::new(),
            readiness_check: None,
            kill_grace: Duration::ZERO,
            networking: None,
        }
    }

    fn port(number: u16, name: Option<&str>, protocol: &str, labels: &[(&str, &str)]) -> DiscoveryPort {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        DiscoveryPort { number, name: name.map(str::to_owned), protocol: protocol.to_owned(), labels }
    }

    #[test]
    fn ports_with_a_name_or_a_vip_are_waited_for() {
        let on_host = ("network-scope", "host");
        let mut spec = spec(vec![
            port(31_000, None, "tcp", &[]),
            port(31_004, Some("default"), "tcp", &[]),
            port(31_001, Some("http"), "tcp", &[on_host]),
            port(31_002, None, "tcp", &[("VIP_0", "/web:80")]),
            port(31_003, Some("dns"), "udp", &[("VIP_0", "/dns:53")]),
            port(0, Some("none"), "tcp", &[]),
        ]);
        assert_eq!(awaited_ports(&spec), [31_001, 31_002].into());
        assert_eq!(expected(&spec), Some(false));
        spec.networking = Some(TaskNetworking {
            attachments: vec![Attachment::default()],
            mappings: vec![PortForward { host_port: 31_001, container_port: 80, protocol: Protocol::Tcp }],
        });
        assert_eq!(awaited_ports(&spec), [80, 31_002].into(), "the task's own ports");
        spec.health_checked = true;
        assert_eq!(expected(&spec), None);
    }

    #[tokio::test]
    async fn patience_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let open = listener.local_addr().expect("bound").port();
        for (ports, expected) in [(vec![open], Some(true)), (vec![open, 0], None)] {
            let place = Place {
                ports: ports.into_iter().collect(),
                addresses: vec![[127, 0, 0, 1].into()],
                process: None,
                host: HostListeners::default(),
            };
            let (notices, mut received) = tokio::sync::mpsc::channel(1);
            let task = spec(Vec::new()).key;
            look(place, Duration::ZERO, Speaker { task, container: Uuid::nil(), notices }).await;
            let what = received.recv().await.expect("a notice").what;
            assert!(matches!(what, What::Looked { listening } if listening == expected), "{what:?}");
        }
    }
}
