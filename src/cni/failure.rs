//! Why a call has failed, as runtimes are told.

use std::error::Error;

use mesonet_agent::AttachmentError;
use serde_json::{Value, json};

use super::config::Version;

/// The codes of the specification, and from 100 on those of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The version is not known.
    Version = 1,
    /// The configuration asks for what the plugin does not do.
    Unsupported = 2,
    /// There is no such container.
    Container = 3,
    /// A variable of the environment is missing or no value.
    Environment = 4,
    /// The system has refused something.
    Io = 5,
    /// It is no configuration.
    Decode = 6,
    /// The configuration makes no sense.
    Config = 7,
    /// It may work later.
    Later = 11,
    /// The plugin cannot give interfaces.
    Unavailable = 50,
    /// The container has the interface.
    Exists = 100,
    /// Every address is taken.
    Exhausted = 101,
    /// Something is not as it was made.
    Altered = 102,
}

/// A failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub message: String,
    pub details: String,
}

impl Failure {
    pub fn new(code: Code, message: String) -> Self {
        Self { code, message, details: String::new() }
    }

    /// What could not be done about an attachment.
    pub fn attachment(error: &AttachmentError) -> Self {
        let code = match error {
            AttachmentError::Exists(_) => Code::Exists,
            AttachmentError::Unknown(_) | AttachmentError::Namespace { .. } => Code::Container,
            AttachmentError::NoPart(_) | AttachmentError::Busy(_) => Code::Later,
            AttachmentError::Exhausted(_) => Code::Exhausted,
            AttachmentError::Altered(_) => Code::Altered,
            AttachmentError::Interface(_) | AttachmentError::Netlink(_) | AttachmentError::File(_) => {
                Code::Io
            }
        };
        let details = error.source().map(in_full).unwrap_or_default();
        Self { code, message: error.to_string(), details }
    }

    pub fn to_json(&self, version: Version) -> Value {
        json!({
            "cniVersion": version.text(),
            "code": self.code as u32,
            "msg": self.message,
            "details": self.details,
        })
    }
}

/// An error and what caused it, in one line.
pub fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
