//! Master and Marathon together, as one pure state machine.
//!
//! ```text
//!            inputs: agent reports, plane reports, commands
//!                  │                             │
//!              ┌───▼────┐  scheduler events  ┌───▼──────┐
//!              │ master ├───────────────────►│ marathon │
//!              │        │◄───────────────────┤          │
//!              └───┬────┘  scheduler calls   └───┬──────┘
//!                  └── writes, then releases ────┘
//! ```
//!
//! Marathon is a framework like any other; that both live in one process only means that what they say to each other
//! is delivered at once. [`ControlPlane::step`] runs until neither has anything more to say, so that one commit holds
//! everything that follows from its inputs.

use std::collections::{BTreeMap, VecDeque};

use mesonet_api::State;
use mesonet_marathon::{Command, Event, Marathon, Rejection, Reply};
use mesonet_master::Master;
use mesonet_model::{
    AgentCommand, AgentId, AgentReport, Framework, FrameworkId, Plane, PlaneReport, Revision, SchedulerEvent,
    Table, TaskKey, Timestamp, Write,
};

/// The most messages that one step delivers. What is left is delivered by the next step, so that no commit and no
/// reader waits longer than this takes (some 100 ms); a thousand launches are about three thousand messages.
const MESSAGES_MAX: usize = 16_384;

/// Master and Marathon.
#[derive(Debug)]
pub struct ControlPlane {
    master: Master,
    marathon: Marathon,
    marathon_id: Option<FrameworkId>,
    planes: BTreeMap<(AgentId, Plane), PlaneReport>,
    messages: VecDeque<Message>,
    committed: Revision,
}

/// One thing that happened outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// An agent reports.
    Agent(AgentReport),
    /// A plane reports.
    Plane(PlaneReport),
    /// A user commands; the answer is a [`Release::Answer`] with the same number.
    Command {
        /// Chosen by the caller.
        number: u64,
        /// The command.
        command: Command,
    },
}

/// What follows from a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// What is to be committed before anything else happens, if anything is.
    pub commit: Option<Commit>,
    /// What is to be done once it is committed and visible.
    pub releases: Vec<Release>,
}

/// A change to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// The revision that it makes.
    pub revision: Revision,
    /// The latest write of each record.
    pub writes: Vec<Write>,
}

/// Something to be done after the commit.
#[derive(Debug, Clone, PartialEq)]
pub enum Release {
    /// Tell an agent.
    Agent {
        /// Which.
        agent: AgentId,
        /// What.
        command: AgentCommand,
    },
    /// Answer a command.
    Answer {
        /// The command's number.
        number: u64,
        /// The answer.
        answer: Result<Reply, Rejection>,
    },
    /// Tell those who listen to Marathon.
    Event(Event),
    /// Tell an operator that part of a task's description has no effect.
    Warn {
        /// The task.
        task: TaskKey,
        /// What is wrong with it, for people.
        message: String,
    },
}

/// Something on its way between the two.
#[derive(Debug)]
enum Message {
    ToMaster(mesonet_master::Input),
    ToMarathon(mesonet_marathon::Input),
}

/// The latest value of every record that was written.
#[derive(Debug, Default)]
struct Records(BTreeMap<(Table, String), Option<Vec<u8>>>);

impl ControlPlane {
    /// Couples the two, of which `committed` is the last revision in the store, and subscribes Marathon as a
    /// framework.
    pub fn start(
        master: Master,
        marathon: Marathon,
        marathon_as_framework: Framework,
        committed: Revision,
        now: Timestamp,
    ) -> (Self, Batch) {
        let subscribe = mesonet_master::Input::Subscribe(marathon_as_framework);
        let mut control_plane = Self {
            master,
            marathon,
            marathon_id: None,
            planes: BTreeMap::new(),
            messages: VecDeque::from([Message::ToMaster(subscribe)]),
            committed,
        };
        let batch = control_plane.step([], now);
        (control_plane, batch)
    }

    /// Reacts to what happened and to the time.
    ///
    /// The batch has to be carried out before the next step: what follows builds on it.
    pub fn step(&mut self, inputs: impl IntoIterator<Item = Input>, now: Timestamp) -> Batch {
        for input in inputs {
            self.accept(input);
        }
        self.queue_due_ticks(now);
        let mut records = Records::default();
        let mut releases = Vec::new();
        for _ in 0..MESSAGES_MAX {
            let Some(message) = self.messages.pop_front() else { break };
            self.deliver(message, now, &mut records, &mut releases);
        }
        if !records.0.is_empty() && self.master.view().revision == self.committed {
            self.deliver(Message::ToMaster(mesonet_master::Input::Touch), now, &mut records, &mut releases);
        }
        Batch { commit: self.commit(records), releases }
    }

    /// The state after the latest step.
    pub fn state(&self) -> State {
        let cluster = self.master.view().clone();
        let mut marathon = self.marathon.view();
        marathon.revision = cluster.revision;
        State { cluster, marathon, planes: self.planes.clone() }
    }

    /// When to step again at the latest, and why.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        if !self.messages.is_empty() {
            return Some((Timestamp::from_millis(i64::MIN), "messages are left"));
        }
        [self.master.deadline(), self.marathon.deadline()].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn accept(&mut self, input: Input) {
        let message = match input {
            Input::Agent(report) => Message::ToMaster(mesonet_master::Input::Agent(report)),
            Input::Plane(report) => {
                self.planes.insert((report.node.clone(), report.plane), report.clone());
                Message::ToMaster(mesonet_master::Input::Plane(report))
            }
            Input::Command { number, command } => {
                Message::ToMarathon(mesonet_marathon::Input::Command { number, command })
            }
        };
        self.messages.push_back(message);
    }

    fn queue_due_ticks(&mut self, now: Timestamp) {
        let is_due = |deadline: Option<(Timestamp, _)>| deadline.is_some_and(|(at, _)| at <= now);
        if is_due(self.master.deadline()) {
            self.messages.push_back(Message::ToMaster(mesonet_master::Input::Tick));
        }
        if is_due(self.marathon.deadline()) {
            self.messages.push_back(Message::ToMarathon(mesonet_marathon::Input::Tick));
        }
    }

    fn deliver(
        &mut self,
        message: Message,
        now: Timestamp,
        records: &mut Records,
        releases: &mut Vec<Release>,
    ) {
        match message {
            Message::ToMaster(input) => {
                for effect in self.master.handle(input, now) {
                    self.take_from_master(effect, records, releases);
                }
            }
            Message::ToMarathon(input) => {
                for effect in self.marathon.handle(input, now) {
                    self.take_from_marathon(effect, records, releases);
                }
            }
        }
    }

    fn take_from_master(
        &mut self,
        effect: mesonet_master::Effect,
        records: &mut Records,
        releases: &mut Vec<Release>,
    ) {
        match effect {
            mesonet_master::Effect::Store(write) => records.keep(write),
            mesonet_master::Effect::Agent { agent, command } => {
                releases.push(Release::Agent { agent, command });
            }
            mesonet_master::Effect::Warn { task, message } => releases.push(Release::Warn { task, message }),
            mesonet_master::Effect::Framework { framework, event } => {
                if let SchedulerEvent::Subscribed { framework } = &event {
                    self.marathon_id = Some(framework.clone());
                }
                // Only Marathon can be subscribed; any other framework is one of a former life and is not connected.
                if self.marathon_id.as_ref() == Some(&framework) {
                    self.messages.push_back(Message::ToMarathon(mesonet_marathon::Input::Event(event)));
                }
            }
        }
    }

    fn take_from_marathon(
        &mut self,
        effect: mesonet_marathon::Effect,
        records: &mut Records,
        releases: &mut Vec<Release>,
    ) {
        match effect {
            mesonet_marathon::Effect::Store(write) => records.keep(write),
            mesonet_marathon::Effect::Call(call) => {
                let framework =
                    self.marathon_id.clone().expect("BUG: Marathon calls before it is subscribed");
                self.messages.push_back(Message::ToMaster(mesonet_master::Input::Call { framework, call }));
            }
            mesonet_marathon::Effect::Answer { number, answer } => {
                releases.push(Release::Answer { number, answer });
            }
            mesonet_marathon::Effect::Publish(event) => releases.push(Release::Event(event)),
        }
    }

    /// A new revision is committed even if no record changed with it, because revisions are never used twice.
    fn commit(&mut self, records: Records) -> Option<Commit> {
        let revision = self.master.view().revision;
        if revision == self.committed {
            return None;
        }
        self.committed = revision;
        Some(Commit { revision, writes: records.into_writes() })
    }
}

impl Records {
    fn keep(&mut self, write: Write) {
        self.0.insert((write.table, write.key), write.value);
    }

    fn into_writes(self) -> Vec<Write> {
        self.0.into_iter().map(|((table, key), value)| Write { table, key, value }).collect()
    }
}
