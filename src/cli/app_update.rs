//! `KEY=VALUE` changes to an app, in the names of Marathon's API.

use std::path::PathBuf;
use std::str::FromStr;

use serde_json::{Map, Value};
use thiserror::Error;

/// An argument of `app update`.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// `KEY=VALUE`: one field, or one entry of a field that is an object.
    Set(Assignment),
    /// A file with a partial app, `-` for standard input.
    File(PathBuf),
}

/// One field or entry and its new value.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    field: String,
    entry: Option<String>,
    value: Value,
}

/// The argument is no change.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// There is nothing before the equals sign.
    #[error("'{0}' has no key: expected KEY=VALUE, such as instances=3 or env.LEVEL=debug")]
    NoKey(String),
    /// A dot has nothing before or after it.
    #[error("'{0}' has an incomplete key: expected FIELD or FIELD.ENTRY before the equals sign")]
    IncompleteKey(String),
}

/// Fields whose value is a text, so that `cmd=true` and `role=1` mean what they look like.
const TEXT_FIELDS: [&str; 6] = ["cmd", "executor", "id", "killSelection", "role", "user"];

/// Fields whose entries have texts as values, so that `env.PORT=80` is a text.
const TEXT_MAPS: [&str; 2] = ["env", "labels"];

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let Some((key, value)) = text.split_once('=') else {
            return Ok(Self::File(PathBuf::from(text)));
        };
        if key.is_empty() {
            return Err(ChangeError::NoKey(text.to_owned()));
        }
        let (field, entry) = match key.split_once('.') {
            Some(("", _) | (_, "")) => return Err(ChangeError::IncompleteKey(text.to_owned())),
            // Everything after the first dot is the entry: names of labels have dots.
            Some((field, entry)) => (field, Some(entry.to_owned())),
            None => (key, None),
        };
        let value = value_of(field, entry.is_some(), value);
        Ok(Self::Set(Assignment { field: field.to_owned(), entry, value }))
    }
}

impl Assignment {
    /// Makes the change in a partial app. Entries are added to those that the app has, because the API replaces a
    /// field whole.
    pub fn apply(&self, current: &Value, partial: &mut Map<String, Value>) {
        let Some(entry) = &self.entry else {
            partial.insert(self.field.clone(), self.value.clone());
            return;
        };
        let before = partial.remove(&self.field).unwrap_or_else(|| current[&self.field].clone());
        let mut entries = match before {
            Value::Object(entries) => entries,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Map::new()
            }
        };
        entries.insert(entry.clone(), self.value.clone());
        partial.insert(self.field.clone(), Value::Object(entries));
    }
}

/// The value as JSON where it is JSON and the field is not one of texts; else as text.
fn value_of(field: &str, is_entry: bool, text: &str) -> Value {
    let as_text = || Value::String(text.to_owned());
    let parsed = || serde_json::from_str(text).unwrap_or_else(|_| as_text());
    match (is_entry, parsed()) {
        (false, _) if TEXT_FIELDS.contains(&field) => as_text(),
        // A variable may also be a reference to a secret, which is an object.
        (true, Value::Object(object)) if field == "env" => Value::Object(object),
        (true, _) if TEXT_MAPS.contains(&field) => as_text(),
        (_, value) => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(changes: &[&str]) -> Value {
        let current = json!({ "instances": 1, "env": { "A": "1" }, "labels": {} });
        let mut partial = Map::new();
        for change in changes {
            match change.parse().expect(change) {
                Change::Set(assignment) => assignment.apply(&current, &mut partial),
                Change::File(path) => panic!("{} is read as a file", path.display()),
            }
        }
        Value::Object(partial)
    }

    #[test]
    fn fields_get_json_or_text() {
        assert_eq!(applied(&["instances=3", "cpus=0.5"]), json!({ "instances": 3, "cpus": 0.5 }));
        assert_eq!(applied(&["cmd=true", "user=1000"]), json!({ "cmd": "true", "user": "1000" }));
        assert_eq!(applied(&["cmd=a=b c"]), json!({ "cmd": "a=b c" }));
        assert_eq!(applied(&[r#"labels={"a":"b"}"#]), json!({ "labels": { "a": "b" } }));
        assert_eq!(applied(&["requirePorts=true", "user="]), json!({ "requirePorts": true, "user": "" }));
    }

    #[test]
    fn entries_join_those_that_are_there() {
        assert_eq!(applied(&["env.B=2", "env.C=x"]), json!({ "env": { "A": "1", "B": "2", "C": "x" } }));
        assert_eq!(
            applied(&["labels.traefik.enable=true"]),
            json!({ "labels": { "traefik.enable": "true" } })
        );
        assert_eq!(
            applied(&[r#"env.KEY={"secret":"s"}"#]),
            json!({ "env": { "A": "1", "KEY": { "secret": "s" } } })
        );
        assert_eq!(
            applied(&["upgradeStrategy.minimumHealthCapacity=0.5"]),
            json!({ "upgradeStrategy": { "minimumHealthCapacity": 0.5 } })
        );
    }

    #[test]
    fn the_last_of_several_values_wins() {
        assert_eq!(applied(&["instances=3", "instances=4"]), json!({ "instances": 4 }));
    }

    #[test]
    fn an_argument_without_equals_sign_is_a_file() {
        assert_eq!("web.json".parse(), Ok(Change::File("web.json".into())));
        assert_eq!("-".parse(), Ok(Change::File("-".into())));
    }

    #[test]
    fn incomplete_keys_are_refused() {
        assert_eq!("=3".parse::<Change>(), Err(ChangeError::NoKey("=3".into())));
        for text in [".a=3", "env.=3"] {
            assert_eq!(text.parse::<Change>(), Err(ChangeError::IncompleteKey(text.into())));
        }
    }
}
