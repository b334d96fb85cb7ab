//! What a runtime calls the plugin with, besides the configuration.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use mesonet_agent::AttachmentKey;

use super::failure::{Code, Failure};

/// Octets of the longest configuration; a longer one is none.
const INPUT_MAX: u64 = 1 << 20;

/// Characters of the longest name of an interface, by Linux.
const INTERFACE_MAX: usize = 15;

/// Characters of the longest name of a container, which becomes part of a file's name. Runtimes use 64 and fewer.
const CONTAINER_MAX: usize = 200;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Add {
        key: AttachmentKey,
        /// The file of the container's network namespace.
        namespace: PathBuf,
    },
    Del {
        key: AttachmentKey,
    },
    Check {
        key: AttachmentKey,
        /// The file of the container's network namespace.
        namespace: PathBuf,
    },
    Gc,
    Status,
    Version,
}

/// Reads the configuration.
pub fn read(input: &mut impl Read) -> Result<Vec<u8>, Failure> {
    let mut octets = Vec::new();
    input.take(INPUT_MAX).read_to_end(&mut octets).map_err(|error| {
        let message = "the configuration cannot be read".to_owned();
        Failure { code: Code::Io, message, details: error.to_string() }
    })?;
    Ok(octets)
}

impl Command {
    /// The command by the variables of the environment.
    pub fn of(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let text = |name: &'static str| match variable(name) {
            None => Err(wrong(name, "is not set")),
            Some(value) if value.is_empty() => Err(wrong(name, "is not set")),
            Some(value) => value.into_string().map_err(|_| wrong(name, "is no text")),
        };
        let key = || {
            let container = container(text("CNI_CONTAINERID")?)?;
            Ok(AttachmentKey { container, interface: interface(text("CNI_IFNAME")?)? })
        };
        let namespace = || text("CNI_NETNS").map(PathBuf::from);
        Ok(match text("CNI_COMMAND")?.as_str() {
            "ADD" => {
                refuse_requests(variable("CNI_ARGS"))?;
                Self::Add { key: key()?, namespace: namespace()? }
            }
            "DEL" => Self::Del { key: key()? },
            "CHECK" => Self::Check { key: key()?, namespace: namespace()? },
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => return Err(wrong("CNI_COMMAND", &format!("is '{other}', which is no command"))),
        })
    }
}

/// What runtimes ask for beside the configuration, separated by semicolons. What is of no interest may be there.
fn refuse_requests(arguments: Option<OsString>) -> Result<(), Failure> {
    let arguments = arguments.unwrap_or_default();
    let arguments = arguments.to_string_lossy();
    let is_request = |each: &&str| each.starts_with("IP=") || each.starts_with("MAC=");
    match arguments.split(';').find(is_request) {
        None => Ok(()),
        Some(request) => {
            let message =
                format!("CNI_ARGS asks for {request}, but the node chooses the addresses of containers");
            Err(Failure::new(Code::Unsupported, message))
        }
    }
}

fn container(text: String) -> Result<String, Failure> {
    if is_name(&text) && text.len() <= CONTAINER_MAX {
        return Ok(text);
    }
    Err(wrong("CNI_CONTAINERID", &format!("is '{text}', which is no name of a container")))
}

fn interface(text: String) -> Result<String, Failure> {
    let is_special = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if text.len() <= INTERFACE_MAX && text != "." && text != ".." && !text.contains(is_special) {
        return Ok(text);
    }
    Err(wrong("CNI_IFNAME", &format!("is '{text}', which is no name of an interface")))
}

/// Whether a text is a name by the specification.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

fn wrong(name: &str, what: &str) -> Failure {
    Failure::new(Code::Environment, format!("{name} {what}"))
}
