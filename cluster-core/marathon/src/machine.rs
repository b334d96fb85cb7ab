//! The state machine.

use mesonet_model::{SchedulerCall, SchedulerEvent, Table, Timestamp, Write};

use crate::{Command, Event, MarathonView, Rejection, Reply};

/// Marathon's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// First and last service port.
    pub service_ports: (u16, u16),
    /// Seed of the ids that it makes; another one at every start.
    pub seed: u64,
    /// The most versions kept of an app.
    pub versions_max: usize,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A user's command; its answer is an [`Effect::Answer`] with the same number.
    Command {
        /// Chosen by the caller.
        number: u64,
        /// The command.
        command: Command,
    },
    /// Something from the master.
    Event(SchedulerEvent),
    /// Time has passed.
    Tick,
}

/// One thing to be done. Writes are to be committed before any other effect of the same call is released.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Keep a record.
    Store(Write),
    /// Call the master.
    Call(SchedulerCall),
    /// Answer a command.
    Answer {
        /// The command's number.
        number: u64,
        /// The answer.
        answer: Result<Reply, Rejection>,
    },
    /// Tell listeners.
    Publish(Event),
}

/// Records from the store, to begin from.
pub type Recovered = Vec<(Table, String, Vec<u8>)>;

/// Marathon.
#[derive(Debug)]
pub struct Marathon {}

impl Marathon {
    /// A Marathon that begins from the store's records; empty for a new one.
    pub fn recover(_config: Config, _records: &Recovered) -> Result<Self, serde_json::Error> {
        Ok(Self {})
    }

    /// Reacts to one input.
    pub fn handle(&mut self, _input: Input, _now: Timestamp) -> Vec<Effect> {
        Vec::new()
    }

    /// The state for readers. Cheap: it shares structure with the state itself.
    pub fn view(&self) -> MarathonView {
        unreachable!()
    }

    /// When to call `handle` with [`Input::Tick`] at the latest, and why.
    pub fn deadline(&self) -> Option<(Timestamp, &'static str)> {
        None
    }
}
