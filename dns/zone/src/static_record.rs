//! Records that do not follow from the cluster: those of the settings, and the fixed names of dcos-dns.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::{Config, ConfigError, Data, Name, NameError};

/// The longest string of a TXT record in octets (RFC 1035 §3.3).
const STRING_LENGTH_MAX: usize = 255;

/// The most strings of a TXT record: together they stay below what any message can hold.
const STRINGS_MAX: usize = 64;

/// A record of the settings. Its text is that of a zone file: `NAME [TTL] [IN] TYPE VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StaticRecord {
    /// The absolute name that it belongs to, with or without the final dot.
    pub name: String,
    /// Time to live in seconds, for all records of the name; [`Config::ttl`] if absent.
    pub ttl: Option<u32>,
    /// Type and value: one of A, AAAA, SRV, CNAME, PTR and TXT.
    pub data: Data,
}

/// A text is no static record.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StaticRecordError {
    /// It does not have the parts of one.
    #[error("'{0}' is no record: expected NAME [TTL] TYPE VALUE, such as 'db.example 60 A 10.0.0.1'")]
    Form(String),
    /// The type is none that can be served.
    #[error("'{0}' is no type of a static record: expected A, AAAA, SRV, CNAME, PTR or TXT")]
    Type(String),
    /// The value is none of the type.
    #[error("'{value}' is no value of a record of type {kind}: expected {expected}")]
    Value {
        /// The value as given.
        value: String,
        /// The type.
        kind: &'static str,
        /// What is expected.
        expected: &'static str,
    },
    /// A name is no domain name.
    #[error("'{name}' is no domain name")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        source: NameError,
    },
}

/// What is served whatever the view.
#[derive(Debug, Default)]
pub(crate) struct StaticRecords(Vec<(Name, Option<u32>, Data)>);

// === impl StaticRecord ===

impl FromStr for StaticRecord {
    type Err = StaticRecordError;

    fn from_str(text: &str) -> Result<Self, StaticRecordError> {
        let error = || StaticRecordError::Form(text.to_owned());
        let (name, rest) = word(text).ok_or_else(error)?;
        absolute(name)?;
        let (mut kind, mut rest) = word(rest).ok_or_else(error)?;
        let ttl = kind.parse().ok();
        if ttl.is_some() {
            (kind, rest) = word(rest).ok_or_else(error)?;
        }
        if kind.eq_ignore_ascii_case("IN") {
            (kind, rest) = word(rest).ok_or_else(error)?;
        }
        let data = value(kind, rest.trim())?;
        Ok(Self { name: name.to_owned(), ttl, data })
    }
}

fn value(kind: &str, text: &str) -> Result<Data, StaticRecordError> {
    let error = |kind, expected| StaticRecordError::Value { value: text.to_owned(), kind, expected };
    match kind.to_ascii_uppercase().as_str() {
        "A" => {
            let address: Ipv4Addr = text.parse().map_err(|_| error("A", "an IPv4 address"))?;
            Ok(Data::A(address))
        }
        "AAAA" => {
            let address: Ipv6Addr = text.parse().map_err(|_| error("AAAA", "an IPv6 address"))?;
            Ok(Data::Aaaa(address))
        }
        "CNAME" => Ok(Data::Cname(absolute(text)?)),
        "PTR" => Ok(Data::Ptr(absolute(text)?)),
        "SRV" => {
            let error = || error("SRV", "PRIORITY WEIGHT PORT TARGET");
            let parts: Vec<&str> = text.split_whitespace().collect();
            let [priority, weight, port, target] = parts[..] else { return Err(error()) };
            let number = |text: &str| text.parse::<u16>().map_err(|_| error());
            Ok(Data::Srv {
                priority: number(priority)?,
                weight: number(weight)?,
                port: number(port)?,
                target: absolute(target)?,
            })
        }
        "TXT" => {
            let strings = strings(text);
            let strings = strings.filter(|strings| (1..=STRINGS_MAX).contains(&strings.len()));
            let strings = strings.ok_or_else(|| error("TXT", "\"text\", each at most 255 octets long"))?;
            Ok(Data::Txt(strings))
        }
        _ => Err(StaticRecordError::Type(kind.to_owned())),
    }
}

/// The strings of a TXT record: words, or text in double quotes in which a backslash takes the meaning from a
/// character. Nothing if a quote does not end or a string is too long.
fn strings(text: &str) -> Option<Vec<Arc<[u8]>>> {
    let mut strings = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters.next_if(|character| character.is_whitespace()).is_some() {}
        let Some(first) = characters.next() else { return Some(strings) };
        let is_quoted = first == '"';
        let mut string = String::new();
        let mut next = if is_quoted { Some(characters.next()?) } else { Some(first) };
        while let Some(character) = next {
            match character {
                '"' if is_quoted => break,
                '\\' => string.push(characters.next()?),
                _ if !is_quoted && character.is_whitespace() => break,
                _ => string.push(character),
            }
            next = characters.next();
            if next.is_none() && is_quoted {
                return None;
            }
        }
        if string.len() > STRING_LENGTH_MAX {
            return None;
        }
        strings.push(Arc::from(string.into_bytes()));
    }
}

/// The first word of a text, and what follows.
fn word(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    (!word.is_empty()).then_some((word, rest))
}

fn absolute(name: &str) -> Result<Name, StaticRecordError> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    Name::root().below(bare).map_err(|source| StaticRecordError::Name { name: name.to_owned(), source })
}

// === impl StaticRecords ===

impl StaticRecords {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut records = Self::default();
        for record in &config.static_records {
            records.0.push((owner(&record.name)?, record.ttl, record.data.clone()));
        }
        records.check(config)?;
        for (name, data) in fixed() {
            // What the settings say of a name counts.
            let name = owner(name)?;
            if config.static_records.iter().all(|record| owner(&record.name).as_ref() != Ok(&name)) {
                records.0.push((name, None, data?));
            }
        }
        for (name, addresses) in [
            ("thisnode.thisdcos.directory", &config.node_addresses),
            ("public.thisnode.thisdcos.directory", &config.node_public_addresses),
        ] {
            for address in addresses {
                records.0.push((owner(name)?, None, Data::from(*address)));
            }
        }
        Ok(records)
    }

    /// Refuses names that are aliases and more.
    fn check(&self, config: &Config) -> Result<(), ConfigError> {
        for (at, (name, _, data)) in self.0.iter().enumerate() {
            let others = || self.0.iter().enumerate().filter(|(other, _)| *other != at);
            if matches!(data, Data::Cname(_)) && others().any(|(_, (other, ..))| other == name) {
                return Err(ConfigError::AliasAndMore { name: config.static_records[at].name.clone() });
            }
        }
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Name, &Data)> {
        self.0.iter().map(|(name, _, data)| (name, data))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.iter().map(|(name, ..)| name)
    }

    /// Times to live of names that have their own; the shortest one counts.
    pub(crate) fn own_ttls(&self) -> BTreeMap<Name, u32> {
        let mut ttls: BTreeMap<Name, u32> = BTreeMap::new();
        for (name, ttl, _) in &self.0 {
            if let Some(ttl) = *ttl {
                let known = ttls.entry(name.clone()).or_insert(ttl);
                *known = ttl.min(*known);
            }
        }
        ttls
    }
}

/// The names that every node of DC/OS has (spec/dcos-networking.md §2.1.4).
fn fixed() -> impl Iterator<Item = (&'static str, Result<Data, ConfigError>)> {
    [
        ("ready.spartan", Ok(Data::from(IpAddr::from([127, 0, 0, 1])))),
        ("ns.spartan", Ok(Data::from(IpAddr::from([198, 51, 100, 1])))),
        ("localhost", Ok(Data::from(IpAddr::from(Ipv4Addr::LOCALHOST)))),
        ("localhost", Ok(Data::from(IpAddr::from(Ipv6Addr::LOCALHOST)))),
        ("registry.component.thisdcos.directory", owner("master.dcos.thisdcos.directory").map(Data::Cname)),
    ]
    .into_iter()
}

fn owner(name: &str) -> Result<Name, ConfigError> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    Name::root().below(bare).map_err(|source| ConfigError::StaticName { name: name.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_read_what_zone_files_say() {
        for (text, expected) in [
            ("db.example A 10.0.0.1", "A 10.0.0.1"),
            ("db.example. 60 IN aaaa fd00::1", "AAAA fd00::1"),
            ("www.example cname DB.example.", "CNAME db.example."),
            ("1.0.0.10.in-addr.arpa PTR db.example", "PTR db.example."),
            ("_db._tcp.example SRV 1 2 5432 db.example", "SRV 1 2 5432 db.example."),
            ("example TXT plain \"a b\" \"q\\\"q\"", "TXT \"plain\" \"a b\" \"q\\\"q\""),
        ] {
            let record: StaticRecord = text.parse().expect(text);
            assert_eq!(record.data.to_string(), expected, "{text}");
        }
        let record: StaticRecord = "db.example. 60 IN A 10.0.0.1".parse().expect("a record");
        assert_eq!((record.name.as_str(), record.ttl), ("db.example.", Some(60)));
    }

    #[test]
    fn what_is_no_record_says_why() {
        let long = format!("a TXT \"{}\"", "x".repeat(256));
        for (text, expected) in [
            ("", "'' is no record"),
            ("db.example", "'db.example' is no record"),
            ("db.example 60", "'db.example 60' is no record"),
            ("db.example 60 IN", "'db.example 60 IN' is no record"),
            ("db..example A 10.0.0.1", "'db..example' is no domain name"),
            ("db.example MX 5 mail", "'MX' is no type"),
            ("db.example A fd00::1", "'fd00::1' is no value of a record of type A: expected an IPv4 address"),
            ("db.example A", "'' is no value of a record of type A"),
            ("db.example AAAA 10.0.0.1", "'10.0.0.1' is no value of a record of type AAAA"),
            ("db.example SRV 1 2 70000 x", "'1 2 70000 x' is no value of a record of type SRV"),
            ("db.example SRV 1 2 3", "'1 2 3' is no value of a record of type SRV"),
            ("db.example TXT", "'' is no value of a record of type TXT"),
            ("db.example TXT \"a", "'\"a' is no value of a record of type TXT"),
            (&long, "'\"xxx"),
        ] {
            let error = text.parse::<StaticRecord>().expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
