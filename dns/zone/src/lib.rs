//! View to records, question to answer.
//!
//! [`ZoneFollower`] turns views of the cluster into a [`Zone`], an immutable table of records, at a cost proportional
//! to what changed. [`Zone::answer`] answers one question from it. Names and records are those of mesos-dns and
//! dcos-dns (spec/dcos-networking.md §1.2 to §1.5 and §2.1.4 to §2.1.6).
//!
//! The crate is pure: it reads no clock, no socket and no randomness. What goes over the wire, with message ids, EDNS
//! and truncation, is the server's.
//!
//! Main types: [`Zone`], [`ZoneFollower`], [`Question`], [`Answer`], [`Name`].

#![forbid(unsafe_code)]

mod answer;
mod cluster_names;
mod config;
mod contribution;
mod entry_set;
mod follower;
mod listing;
mod mesos_name;
mod name;
mod origins;
mod parts;
mod record;
mod reverse;
mod static_record;
mod table;
mod task_names;

pub use answer::{Answer, ExtendedError, Question, QuestionType, ResponseCode, Zone};
pub use config::{Config, ConfigError, IP_SOURCES_LABEL, IpSource, LabelRule, SoaConfig, TaskChoice};
pub use follower::ZoneFollower;
pub use listing::{ListedFramework, ListedTask};
pub use name::{Name, NameError};
pub use parts::Apex;
pub use record::{Data, Record, Soa};
pub use static_record::{StaticRecord, StaticRecordError};
