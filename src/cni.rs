//! The CNI plugin (specification 1.0 and 1.1): interfaces in virtual networks for containers of other runtimes.
//!
//! A runtime calls it with the command in the environment and the network's configuration on standard input, and reads
//! a result or an error from standard output. It works on the directory of the node's agent, whether or not that runs.

mod call;
mod config;
mod failure;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use mesonet_agent::{Attachment, AttachmentRequest, Attachments};
use mesonet_model::{NodeSubnets, Subnet};
use serde_json::{Value, json};

use crate::roles::ViewCache;
use call::Command;
use config::{NetworkConfig, Version};
use failure::{Code, Failure};

/// Does what the environment and standard input say.
pub fn run_cni() -> ExitCode {
    let input = call::read(&mut io::stdin().lock());
    let version = input.as_ref().map_or(Version::NEWEST, |input| config::version_to_answer_with(input));
    let done = input.and_then(|input| answer(&Command::of(|name| std::env::var_os(name))?, &input));
    let (text, code) = match &done {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result.to_string(), ExitCode::SUCCESS),
        Err(failure) => (failure.to_json(version).to_string(), ExitCode::FAILURE),
    };
    // A runtime that does not read the answer cannot be told.
    let _ = writeln!(io::stdout(), "{text}");
    code
}

/// What the runtime is told, if the command has a result.
fn answer(command: &Command, input: &[u8]) -> Result<Option<Value>, Failure> {
    if *command == Command::Version {
        return Ok(Some(config::versions(input)?));
    }
    let config = NetworkConfig::read(input, command)?;
    let agent = config.dir.join("agent");
    if !agent.exists() {
        let has_nothing = matches!(command, Command::Del { .. } | Command::Gc);
        return if has_nothing { Ok(None) } else { Err(not_registered(&config)) };
    }
    let failed = |error| Failure::attachment(&error);
    let attachments = Attachments::open(&agent).map_err(failed)?;
    match command {
        Command::Version => {}
        Command::Add { key, namespace } => {
            let request = AttachmentRequest {
                key: key.clone(),
                label: config.name.clone(),
                network: config.network.clone(),
                parts: parts(&attachments, &config)?,
                namespace: namespace.clone(),
            };
            let attachment = attachments.attach(&request).map_err(failed)?;
            return match config.after_previous(result(&config, &attachment, namespace)) {
                Ok(result) => Ok(Some(result)),
                Err(failure) => attachments.detach(key).map_err(failed).and(Err(failure)),
            };
        }
        Command::Del { key } => attachments.detach(key).map_err(failed)?,
        Command::Check { key, namespace } => {
            let attachment = attachments.check(key, namespace).map_err(failed)?;
            config.check_result(attachment.addresses().map(|each| (each.address, each.prefix)))?;
        }
        Command::Gc => {
            attachments.keep_only(&config.name, &config.valid_attachments()?).map_err(failed)?;
        }
        Command::Status => {
            if parts(&attachments, &config)?.is_empty() {
                let network = &config.network;
                let message = format!("this node has no part of network '{network}'");
                return Err(Failure::new(Code::Unavailable, message));
            }
        }
    }
    Ok(None)
}

/// The node's parts of a network, by the last view.
fn parts(attachments: &Attachments, config: &NetworkConfig) -> Result<Vec<Subnet>, Failure> {
    let agent = attachments.agent().map_err(|error| Failure::attachment(&error))?;
    let agent = agent.ok_or_else(|| not_registered(config))?;
    let subnets: NodeSubnets = ViewCache::of(&config.dir).subnets(&agent).map_err(|error| {
        let message =
            "the node's view of the cluster cannot be read; is its network daemon there?".to_owned();
        Failure { code: Code::Unavailable, message, details: failure::in_full(&error) }
    })?;
    Ok(subnets.of(&config.network).to_vec())
}

fn not_registered(config: &NetworkConfig) -> Failure {
    let message = "this node's agent has not registered yet".to_owned();
    Failure {
        code: Code::Unavailable,
        message,
        details: format!("the node's directory is {}", config.dir.display()),
    }
}

/// The result of an addition.
fn result(config: &NetworkConfig, attachment: &Attachment, namespace: &Path) -> Value {
    let mut inner = json!({ "name": attachment.key.interface, "sandbox": namespace });
    // Podman refuses a result without it.
    if let Some(octets) = attachment.hardware_address {
        inner["mac"] = json!(octets.map(|octet| format!("{octet:02x}")).join(":"));
    }
    if let Some(mtu) = attachment.mtu().filter(|_| config.version >= Version::V1_1) {
        inner["mtu"] = json!(mtu);
    }
    let ips = attachment.addresses().map(|each| {
        json!({
            "address": format!("{}/{}", each.address, each.prefix),
            "gateway": each.gateway,
            "interface": 2,
        })
    });
    let routes = attachment.addresses().filter_map(|each| {
        let everything = if each.address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        each.gateway.map(|gateway| json!({ "dst": everything, "gw": gateway }))
    });
    json!({
        "cniVersion": config.version.text(),
        "interfaces": [{ "name": attachment.bridge() }, { "name": attachment.port }, inner],
        "ips": ips.collect::<Vec<_>>(),
        "routes": routes.collect::<Vec<_>>(),
        "dns": { "nameservers": [config.name_server] },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsString;

    use super::*;

    fn call(environment: &[(&str, &str)], input: &Value) -> Result<Option<Value>, Failure> {
        let environment: BTreeMap<&str, &str> = environment.iter().copied().collect();
        let command = Command::of(|name| environment.get(name).map(OsString::from))?;
        answer(&command, input.to_string().as_bytes())
    }

    fn refused(environment: &[(&str, &str)], input: &Value) -> (Code, String) {
        let failure = call(environment, input).expect_err("a refusal");
        (failure.code, failure.message)
    }

    const ADD: [(&str, &str); 4] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/none"),
        ("CNI_IFNAME", "eth0"),
    ];

    #[test]
    fn it_says_which_versions_it_knows_in_that_of_the_caller() {
        for version in ["0.4.0", "1.0.0", "1.1.0"] {
            let answer = call(&[("CNI_COMMAND", "VERSION")], &json!({ "cniVersion": version }));
            let expected = json!({ "cniVersion": version, "supportedVersions": ["1.0.0", "1.1.0"] });
            assert_eq!(answer.expect("versions"), Some(expected));
        }
    }

    #[test]
    fn what_is_no_call_is_refused_by_the_code_of_the_specification() {
        let dir = tempfile::tempdir().expect("directory");
        let config =
            json!({ "cniVersion": "1.1.0", "name": "net", "type": "mesonet-cni", "dir": dir.path() });
        let with = |name: &str, value: Value| {
            let mut config = config.clone();
            config[name] = value;
            config
        };
        let (code, message) = refused(&[], &config);
        assert_eq!((code, message.as_str()), (Code::Environment, "CNI_COMMAND is not set"));
        assert_eq!(refused(&[("CNI_COMMAND", "JUMP")], &config).0, Code::Environment);
        for (name, bad) in
            [("CNI_CONTAINERID", "../c"), ("CNI_IFNAME", "a/b"), ("CNI_IFNAME", "sixteen-letters-")]
        {
            let environment = ADD.map(|(key, value)| (key, if key == name { bad } else { value }));
            let (code, message) = refused(&environment, &config);
            assert_eq!(code, Code::Environment, "{message}");
            assert!(message.contains(name), "{message}");
        }
        assert_eq!(refused(&ADD[..2], &config).0, Code::Environment);
        assert_eq!(refused(&ADD, &json!([])).0, Code::Decode);
        assert_eq!(refused(&ADD, &with("cniVersion", json!("0.4.0"))).0, Code::Version);
        assert_eq!(refused(&ADD, &with("name", json!(""))).0, Code::Config);
        assert_eq!(refused(&ADD, &with("network", json!("no name"))).0, Code::Decode);
        for (name, asked) in [
            ("runtimeConfig", json!({ "portMappings": [{ "hostPort": 80, "containerPort": 8080 }] })),
            ("runtimeConfig", json!({ "ips": ["9.0.1.9"], "portMappings": [] })),
            ("ipam", json!({ "type": "host-local" })),
        ] {
            let (code, message) = refused(&ADD, &with(name, asked));
            assert_eq!(code, Code::Unsupported, "{message}");
            assert!(message.starts_with(name), "{message}");
        }
        let asks_nothing = with("runtimeConfig", json!({ "portMappings": [] }));
        assert_eq!(refused(&ADD, &asks_nothing).0, Code::Unavailable, "there is no node");
        let add = |arguments: &str| refused(&[&ADD[..], &[("CNI_ARGS", arguments)]].concat(), &config).0;
        assert_eq!(add("IgnoreUnknown=1;K8S_POD_NAME=web"), Code::Unavailable, "there is no node");
        assert_eq!(add("IgnoreUnknown=1;IP=9.0.1.9"), Code::Unsupported);
        let check = ADD.map(|(key, value)| (key, if value == "ADD" { "CHECK" } else { value }));
        assert_eq!(refused(&check, &config).0, Code::Config, "there must be a prevResult");
        let collect = [("CNI_COMMAND", "GC")];
        assert_eq!(refused(&collect, &with("cniVersion", json!("1.0.0"))).0, Code::Version);
    }

    #[test]
    fn a_result_has_that_of_the_plugins_before_in_it() {
        let own = json!({
            "cniVersion": "1.1.0", "interfaces": [{ "name": "m-dcos" }, { "name": "mc0" }, { "name": "eth1" }],
            "ips": [{ "address": "9.0.1.2/24", "interface": 2 }], "routes": [{ "dst": "0.0.0.0/0" }],
            "dns": { "nameservers": ["198.51.100.1"] },
        });
        let after = |previous: Value| {
            let config = json!({ "cniVersion": "1.1.0", "name": "net", "prevResult": previous });
            let add = Command::Add {
                key: mesonet_agent::AttachmentKey { container: "c".to_owned(), interface: "eth1".to_owned() },
                namespace: "/run/netns/c".into(),
            };
            let config = NetworkConfig::read(config.to_string().as_bytes(), &add).expect("a configuration");
            config.after_previous(own.clone())
        };
        assert_eq!(after(Value::Null).expect("a result"), own);
        let previous = json!({
            "cniVersion": "1.1.0", "interfaces": [{ "name": "eth0" }], "odd": 1,
            "ips": [{ "address": "10.5.5.5/24", "interface": 0 }], "dns": { "nameservers": ["10.5.5.1"] },
        });
        let expected = json!({
            "cniVersion": "1.1.0", "odd": 1, "dns": { "nameservers": ["10.5.5.1"] },
            "interfaces": [{ "name": "eth0" }, { "name": "m-dcos" }, { "name": "mc0" }, { "name": "eth1" }],
            "ips": [{ "address": "10.5.5.5/24", "interface": 0 }, { "address": "9.0.1.2/24", "interface": 3 }],
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        assert_eq!(after(previous).expect("a result"), expected);
        assert_eq!(after(json!([])).expect_err("no result").code, Code::Decode);
    }

    #[test]
    fn a_node_that_has_not_joined_says_so() {
        let dir = tempfile::tempdir().expect("directory");
        let config =
            json!({ "cniVersion": "1.1.0", "name": "net", "type": "mesonet-cni", "dir": dir.path() });
        let (code, message) = refused(&[("CNI_COMMAND", "STATUS")], &config);
        assert_eq!((code, message.as_str()), (Code::Unavailable, "this node's agent has not registered yet"));
        assert_eq!(refused(&ADD, &config).0, Code::Unavailable);
        let delete = ADD.map(|(key, value)| (key, if value == "ADD" { "DEL" } else { value }));
        assert_eq!(call(&delete, &config).expect("nothing to do"), None);
    }
}
