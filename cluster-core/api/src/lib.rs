//! HTTP surfaces: Marathon v2, what the dcos command line needs of its front, and mesonet's own v1.
//!
//! Answers are made from the committed [`State`] alone; changes go to Marathon as [`Request`]s and are answered once
//! they are committed and visible. The forms of requests and answers live here and nowhere else.
//!
//! Where there are several masters, whoever is asked, the leader answers ([`router_on_duty`]).
//!
//! Main parts: [`router`], [`Context`].

#![forbid(unsafe_code)]

mod api;
mod app_input;
mod call;
mod context;
mod duty;
mod embed;
mod failure;
mod forward;
mod json_reader;
mod label_selector;
mod masters;
mod output;
mod plane_history;
mod respond;
mod routes;

pub use api::router;
pub use context::{
    Answer, Clock, Context, NodeOrder, NodeRequest, Planes, Request, SandboxChunk, SandboxError,
    SandboxReader, State,
};
pub use duty::{Duty, Leading, Replica, Standing, router_on_duty};
pub use masters::{LoneMaster, MasterList, MasterState, Masters};
pub use plane_history::{AwayPlane, PlaneHistory};
pub use routes::holders_answer;
