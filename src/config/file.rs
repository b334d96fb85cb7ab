//! The configuration file.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;
use toml::{Table, Value};

use super::Settings;

/// The configuration file cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("configuration file {path} is no TOML")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// It says things that mesonet does not understand.
    #[error("configuration file {path}: {}", OnLines(problems))]
    Problems {
        /// The file.
        path: PathBuf,
        /// Each of them.
        problems: Vec<ConfigProblem>,
    },
}

/// One mistake in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigProblem {
    /// There is no such setting.
    #[error("unknown key '{key}'; known are {known}")]
    UnknownKey {
        /// The key.
        key: String,
        /// Those that exist.
        known: String,
    },
    /// The value does not fit the setting.
    #[error("{key}: {problem}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
}

struct OnLines<'problems>(&'problems [ConfigProblem]);

impl fmt::Display for OnLines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

pub(super) fn read<S: Settings>(path: &Path) -> Result<S, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let table = text
        .parse::<Table>()
        .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
    settings(table).map_err(|problems| ConfigError::Problems { path: path.to_owned(), problems })
}

fn settings<S: Settings>(table: Table) -> Result<S, Vec<ConfigProblem>> {
    let mut keys = Keys::new(table);
    let settings = S::take(&mut keys);
    keys.finish()?;
    Ok(settings)
}

/// The keys of a table that nobody has asked for yet, and what was wrong with the others.
#[derive(Debug)]
pub struct Keys {
    left: BTreeMap<String, Value>,
    asked: Vec<&'static str>,
    problems: Vec<ConfigProblem>,
}

impl Keys {
    fn new(table: Table) -> Self {
        Self { left: table.into_iter().collect(), asked: Vec::new(), problems: Vec::new() }
    }

    /// Takes the value of a key; what is wrong with it is kept for the end.
    pub(super) fn take<T: FromStr<Err: fmt::Display>>(&mut self, key: &'static str) -> Option<T> {
        self.asked.push(key);
        let value = self.left.remove(key)?;
        let parsed = as_text(&value).and_then(|text| text.parse().map_err(|e: T::Err| e.to_string()));
        parsed.map_err(|problem| self.problems.push(ConfigProblem::BadValue { key, problem })).ok()
    }

    fn finish(mut self) -> Result<(), Vec<ConfigProblem>> {
        let known = self.asked.join(", ");
        let unknown = self.left.into_keys();
        self.problems.extend(unknown.map(|key| ConfigProblem::UnknownKey { key, known: known.clone() }));
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }
}

fn as_text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Array(items) => {
            let items = items.iter().map(|item| match item {
                Value::String(text) => Ok(text.as_str()),
                other => Err(format!("expected a list of texts, not of {}", other.type_str())),
            });
            Ok(items.collect::<Result<Vec<_>, _>>()?.join(","))
        }
        Value::Boolean(_) | Value::Datetime(_) | Value::Table(_) => {
            Err(format!("expected text or a number, not {}", value.type_str()))
        }
    }
}

/// Settings from a file's text, which is TOML.
#[cfg(test)]
pub(super) fn parse<S: Settings>(text: &str) -> Result<S, Vec<ConfigProblem>> {
    settings(text.parse().expect("toml"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AgentSettings, Datapath, DevSettings, Grace, PortSpan};
    use std::time::Duration;

    #[test]
    fn every_setting_is_read_in_its_text_form() {
        let settings: DevSettings = parse(
            "http = \"127.0.0.1:9000\"\ndatapath = \"none\"\ncpus = 2.5\nmem = 1024\n\
             host-ports = \"40000-40010\"\ndrain-grace = \"500ms\"",
        )
        .expect("valid");
        assert_eq!(settings.http, "127.0.0.1:9000".parse().ok());
        assert_eq!(settings.datapath, Some(Datapath::None));
        assert_eq!(settings.cpus, "2.5".parse().ok());
        assert_eq!(settings.mem, "1024".parse().ok());
        assert_eq!(settings.host_ports, Some(PortSpan { first: 40_000, last: 40_010 }));
        assert_eq!(settings.drain_grace, Some(Grace(Duration::from_millis(500))));
        assert_eq!(settings.dns, None);
    }

    #[test]
    fn a_list_may_be_written_as_one() {
        let settings: AgentSettings = parse("master = [\"a:1\", \"b:2\"]").expect("valid");
        assert_eq!(settings.master, "a:1,b:2".parse().ok());
        assert_eq!(parse::<AgentSettings>("master = \"a:1, b:2\"").expect("valid").master, settings.master);
        let problems = parse::<AgentSettings>("master = [1]").expect_err("no text");
        assert!(OnLines(&problems).to_string().contains("expected a list of texts, not of integer"));
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let problems =
            parse::<DevSettings>("http = \"nowhere\"\nhttps = 1\ncpus = true\n").expect_err("three mistakes");
        let text = OnLines(&problems).to_string();
        assert_eq!(problems.len(), 3, "{text}");
        for expected in ["http: ", "unknown key 'https'", "cpus: expected text or a number, not boolean"] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
