//! The checks of one run of a task, as they run.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mesonet_model::{HealthCheck, HealthProbe, HealthResult, IpProtocol, ReadinessResult};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::check::{Beginning, Check, Effect, Input, Now, Outcome};
use super::patience::within;
use super::probe::Probes;
use super::readiness::Readiness;
use crate::clock;
use crate::link::{Speaker, What};
use crate::metrics::{AgentMetrics, CheckResult, Checked};

/// How long a supervisor may take beyond a command's timeout to say how it ended.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// What a check has to say to the agent's loop.
#[derive(Debug)]
pub(crate) enum News {
    /// Its result has changed in a way that others are to know.
    Told { check: usize, result: HealthResult },
    /// What its readiness check has found has changed in a way that others are to know.
    Readiness(ReadinessResult),
    /// Its command is to be run.
    Run { check: usize, answer: oneshot::Sender<Outcome> },
}

/// The checks of one run of a task. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    checks: Vec<AbortHandle>,
    readiness: Option<AbortHandle>,
    /// What each has told.
    pub(crate) results: Vec<HealthResult>,
    /// Commands that the supervisor was asked to run, and who waits for their ends. At most one for each check.
    pub(crate) commands: BTreeMap<Uuid, oneshot::Sender<Outcome>>,
}

/// What the checks of a task begin with.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) checks: &'a [HealthCheck],
    /// What was told before, one for each check.
    pub(crate) results: Vec<HealthResult>,
    /// What finds out whether it is ready, if somebody waits for that.
    pub(crate) readiness: Option<Readiness>,
    /// The addresses of the task; never empty.
    pub(crate) addresses: Vec<IpAddr>,
    /// How long it has been running.
    pub(crate) age: Duration,
    /// What counts them.
    pub(crate) metrics: &'a AgentMetrics,
}

impl Watch {
    /// Begins to check.
    pub(crate) fn begin(start: Start<'_>, probes: &Probes, speaker: &Speaker) -> Self {
        let Start { checks, results, readiness, addresses, age, metrics } = start;
        let begin = |(index, (settings, result)): (usize, (&HealthCheck, &HealthResult))| {
            let beginning = Beginning { age, place: place_of(speaker.container, index) };
            let runner = Runner {
                index,
                check: Check::new(settings.clone(), result.clone(), beginning, now()),
                settings: settings.clone(),
                address: address_of(&addresses, settings.ip_protocol),
                probes: probes.clone(),
                speaker: speaker.clone(),
                metrics: metrics.clone(),
            };
            tokio::spawn(runner.run()).abort_handle()
        };
        let checks = checks.iter().zip(&results).enumerate().map(begin).collect();
        let readiness = readiness.zip(address_of(&addresses, None)).map(|(check, address)| {
            let waiting = wait_until_ready(check, address, probes.clone(), speaker.clone(), metrics.clone());
            tokio::spawn(waiting).abort_handle()
        });
        Self { checks, readiness, results, commands: BTreeMap::new() }
    }

    /// Whether it is waited until the task is ready.
    pub(crate) fn is_waiting_for_readiness(&self) -> bool {
        self.readiness.is_some()
    }

    /// Ends the readiness check.
    pub(crate) fn end_readiness(&mut self) {
        self.readiness.take().inspect(AbortHandle::abort);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.checks.iter().chain(&self.readiness).for_each(AbortHandle::abort);
    }
}

struct Runner {
    index: usize,
    check: Check,
    settings: HealthCheck,
    /// None if the task has no address of the check's version of IP.
    address: Option<IpAddr>,
    probes: Probes,
    speaker: Speaker,
    metrics: AgentMetrics,
}

impl Runner {
    async fn run(mut self) {
        let mut input = Input::Tick;
        loop {
            let mut outcome = None;
            for effect in self.check.handle(input, now()) {
                match effect {
                    Effect::Probe => {
                        let found = self.probe().await;
                        self.metrics.checked(Checked::Health, CheckResult::from(&found));
                        outcome = Some(found);
                    }
                    Effect::Tell(result) => {
                        let news = News::Told { check: self.index, result };
                        self.speaker.say(What::Health(news)).await;
                    }
                }
            }
            input = match (outcome, self.check.due()) {
                (Some(outcome), _) => Input::Probed(outcome),
                (None, Some(due)) => {
                    tokio::time::sleep_until(due.into()).await;
                    Input::Tick
                }
                (None, None) => Input::Probed(Outcome::Nothing),
            };
        }
    }

    async fn probe(&self) -> Outcome {
        let timeout = self.settings.timeout;
        match (&self.settings.probe, self.address) {
            (HealthProbe::Http { .. } | HealthProbe::Tcp { .. }, Some(address)) => {
                self.probes.probe(&self.settings.probe, address, timeout).await
            }
            (HealthProbe::Http { .. } | HealthProbe::Tcp { .. }, None) => {
                let wanted = self.settings.ip_protocol.map_or("", IpProtocol::as_str);
                Outcome::Failure(format!("the task has no {wanted} address"))
            }
            (HealthProbe::Command { .. }, _) => {
                let _permit = self.probes.command_permit().await;
                let (answer, answered) = oneshot::channel();
                self.speaker.say(What::Health(News::Run { check: self.index, answer })).await;
                match within(timeout.saturating_add(ANSWER_PATIENCE), answered).await {
                    Some(Ok(outcome)) => outcome,
                    // The loop could not pass it on.
                    Some(Err(_)) => Outcome::Nothing,
                    None => Outcome::Failure("the task's supervisor does not answer".to_owned()),
                }
            }
        }
    }
}

async fn wait_until_ready(
    mut check: Readiness,
    address: IpAddr,
    probes: Probes,
    speaker: Speaker,
    metrics: AgentMetrics,
) {
    while let Some(due) = check.due() {
        tokio::time::sleep_until(due.into()).await;
        let answer = probes.ask_readiness(check.settings(), address).await;
        let result = if check.is_ready(&answer) { CheckResult::Success } else { CheckResult::Failure };
        metrics.checked(Checked::Readiness, result);
        if let Some(result) = check.answered(answer, Instant::now()) {
            speaker.say(What::Health(News::Readiness(result))).await;
        }
    }
}

impl From<&Outcome> for CheckResult {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Success => Self::Success,
            Outcome::Failure(_) => Self::Failure,
            Outcome::Nothing => Self::NotAsked,
        }
    }
}

/// The address of a task that a check asks: the first one of its version of IP. One that does not say which asks the
/// first one of IPv4, and another one if there is none.
fn address_of(addresses: &[IpAddr], wanted: Option<IpProtocol>) -> Option<IpAddr> {
    let first_of = |version: IpProtocol| addresses.iter().find(|address| version.is_of(**address));
    match wanted {
        Some(version) => first_of(version).copied(),
        None => first_of(IpProtocol::V4).or(addresses.first()).copied(),
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), wall: clock::now() }
}

/// Where a check of a run is among others, from 0 to 1: the ids of runs are random, and those of one run are as far from
/// each other as that many can be.
pub(super) fn place_of(container: Uuid, index: usize) -> f64 {
    const GOLDEN_RATIO: f64 = 0.618_033_988_749_894_9;
    let (high, _) = container.as_u64_pair();
    (high as f64 / u64::MAX as f64 + index as f64 * GOLDEN_RATIO).fract()
}
