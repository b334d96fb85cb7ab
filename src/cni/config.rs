//! The configuration of a network, as runtimes keep it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use mesonet_agent::AttachmentKey;
use mesonet_model::NetworkName;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{Command, is_name};
use super::failure::{Code, Failure};

/// Where the node's directory is, unless said.
const DIR_DEFAULT: &str = "/var/lib/mesonet/node";

/// The virtual network, unless said.
const NETWORK_DEFAULT: &str = "dcos";

/// The name server, unless said; as of tasks.
const NAME_SERVER_DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));

/// Versions of the specification that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V1_0,
    V1_1,
}

/// What the plugin is told.
#[derive(Debug)]
pub struct NetworkConfig {
    pub version: Version,
    /// What the runtime calls the network.
    pub name: String,
    /// The node's directory.
    pub dir: PathBuf,
    /// The virtual network.
    pub network: NetworkName,
    pub name_server: IpAddr,
    previous: Option<Value>,
    valid: Option<Value>,
}

/// As it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    cni_version: Option<String>,
    #[serde(default)]
    name: String,
    dir: Option<PathBuf>,
    network: Option<NetworkName>,
    name_server: Option<IpAddr>,
    prev_result: Option<Value>,
    #[serde(default)]
    runtime_config: BTreeMap<String, Value>,
    ipam: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container: String,
    #[serde(rename = "ifname")]
    interface: String,
}

impl Version {
    pub const NEWEST: Self = Self::V1_1;
    const ALL: [Self; 2] = [Self::V1_0, Self::V1_1];

    pub fn text(self) -> &'static str {
        match self {
            Self::V1_0 => "1.0.0",
            Self::V1_1 => "1.1.0",
        }
    }

    fn of(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.text() == text)
    }
}

/// The version of an answer to a configuration: its own, if it is known.
pub fn version_to_answer_with(input: &[u8]) -> Version {
    let input: Option<Value> = serde_json::from_slice(input).ok();
    let version = input.as_ref().and_then(|input| input["cniVersion"].as_str());
    version.and_then(Version::of).unwrap_or(Version::NEWEST)
}

/// The answer to the question for versions.
pub fn versions(input: &[u8]) -> Result<Value, Failure> {
    let asked: Value = serde_json::from_slice(input).map_err(|error| undecoded(&error))?;
    // By the specification the one of the question, whether or not it is known.
    let version = asked["cniVersion"].as_str().unwrap_or(Version::NEWEST.text());
    Ok(json!({ "cniVersion": version, "supportedVersions": Version::ALL.map(Version::text) }))
}

impl NetworkConfig {
    /// Reads what is needed for a command.
    pub fn read(input: &[u8], command: &Command) -> Result<Self, Failure> {
        let written: Written = serde_json::from_slice(input).map_err(|error| undecoded(&error))?;
        let version = written.cni_version.as_deref().unwrap_or("0.1.0");
        let version = known_version(version, command)?;
        if matches!(command, Command::Add { .. }) {
            written.refuse_requests()?;
        }
        if !is_name(&written.name) {
            let message = format!("'{}' is no name of a network", written.name);
            return Err(Failure::new(Code::Config, message));
        }
        if matches!(command, Command::Check { .. }) && written.prev_result.is_none() {
            let message = "prevResult is missing, which is what is to be checked".to_owned();
            return Err(Failure::new(Code::Config, message));
        }
        let network = written.network.map_or_else(|| NETWORK_DEFAULT.parse(), Ok);
        Ok(Self {
            version,
            name: written.name,
            dir: written.dir.unwrap_or_else(|| DIR_DEFAULT.into()),
            network: network.expect("BUG: a constant is no name of a network"),
            name_server: written.name_server.unwrap_or(NAME_SERVER_DEFAULT),
            previous: written.prev_result,
            valid: written.valid,
        })
    }

    /// A result with that of the plugins before in it, if there were any: by the specification nothing of it may be lost.
    pub fn after_previous(&self, own: Value) -> Result<Value, Failure> {
        let Some(previous) = &self.previous else { return Ok(own) };
        let Some(mut all) = previous.as_object().cloned() else {
            return Err(Failure::new(Code::Decode, "prevResult is no result".to_owned()));
        };
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let earlier = list(&previous["interfaces"]).len();
        for name in ["interfaces", "ips", "routes"] {
            let mut own = list(&own[name]);
            for each in &mut own {
                if let Some(index) = each["interface"].as_u64() {
                    each["interface"] = json!(index + earlier as u64);
                }
            }
            all.insert(name.to_owned(), [list(&previous[name]), own].concat().into());
        }
        if list(&previous["dns"]["nameservers"]).is_empty() {
            all.insert("dns".to_owned(), own["dns"].clone());
        }
        all.insert("cniVersion".to_owned(), own["cniVersion"].clone());
        Ok(Value::Object(all))
    }

    /// Whether the earlier result says these addresses.
    pub fn check_result(&self, addresses: impl Iterator<Item = (IpAddr, u8)>) -> Result<(), Failure> {
        let ips = self.previous.as_ref().and_then(|result| result["ips"].as_array());
        let is_said = |text: &str| ips.is_some_and(|ips| ips.iter().any(|ip| ip["address"] == text));
        let missing =
            addresses.map(|(address, prefix)| format!("{address}/{prefix}")).find(|text| !is_said(text));
        match missing {
            None => Ok(()),
            Some(text) => {
                Err(Failure::new(Code::Altered, format!("prevResult does not have the address {text}")))
            }
        }
    }

    /// The attachments that are still wanted.
    pub fn valid_attachments(&self) -> Result<BTreeSet<AttachmentKey>, Failure> {
        let Some(valid) = &self.valid else {
            // Not the same as none: everything would be removed.
            let message = "cni.dev/valid-attachments is missing".to_owned();
            return Err(Failure::new(Code::Config, message));
        };
        let valid: Vec<ValidAttachment> =
            serde_json::from_value(valid.clone()).map_err(|error| undecoded(&error))?;
        let key = |ValidAttachment { container, interface }| AttachmentKey { container, interface };
        Ok(valid.into_iter().map(key).collect())
    }
}

impl Written {
    /// Refuses what the runtime or the configuration asks for and would not get: not to say so would be to say that it is
    /// done.
    fn refuse_requests(&self) -> Result<(), Failure> {
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            Value::String(text) => text.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        let ipam = self.ipam.iter().map(|value| ("ipam".to_owned(), value));
        let runtime =
            self.runtime_config.iter().map(|(name, value)| (format!("runtimeConfig.{name}"), value));
        match ipam.chain(runtime).find(|(_, value)| !is_empty(value)) {
            None => Ok(()),
            Some((name, value)) => Err(Failure::new(
                Code::Unsupported,
                format!("{name} is {value}, which this plugin does not do"),
            )),
        }
    }
}

fn known_version(text: &str, command: &Command) -> Result<Version, Failure> {
    let refused = |message| Err(Failure::new(Code::Version, message));
    let Some(version) = Version::of(text) else {
        let known = Version::ALL.map(Version::text).join(" and ");
        return refused(format!("the configuration is of version {text}, and known are {known}"));
    };
    if version < Version::V1_1 && matches!(command, Command::Gc | Command::Status) {
        return refused(format!("the configuration is of version {text}, which has neither GC nor STATUS"));
    }
    Ok(version)
}

fn undecoded(error: &serde_json::Error) -> Failure {
    let message = "the configuration cannot be understood".to_owned();
    Failure { code: Code::Decode, message, details: error.to_string() }
}
