//! How an app's instances are started, replaced and given up.

use std::time::Duration;

use mesonet_model::{Backoff, KillSelection, UnreachableStrategy, UpgradeStrategy};
use serde_json::{Value, json};

use super::INT_MAX;
use crate::json_reader::Object;

/// The longest URI of an artifact, as in Marathon.
const URI_LENGTH_MAX: usize = 1024;

pub(super) fn read_upgrade_strategy(
    object: &Object<'_>,
    is_resident: bool,
    is_single: bool,
) -> UpgradeStrategy {
    let (minimum, maximum) = match (is_single, is_resident) {
        (true, _) => (0.0, 0.0),
        (false, true) => (0.5, 0.0),
        (false, false) => (1.0, 1.0),
    };
    let given = object.object("upgradeStrategy", &["minimumHealthCapacity", "maximumOverCapacity"]);
    let number = |key, default| given.as_ref().and_then(|given| given.any_number(key)).unwrap_or(default);
    let strategy = UpgradeStrategy {
        minimum_health_capacity: number("minimumHealthCapacity", minimum),
        maximum_over_capacity: number("maximumOverCapacity", maximum),
    };
    if let Some(given) = &given {
        for (key, share) in [
            ("minimumHealthCapacity", strategy.minimum_health_capacity),
            ("maximumOverCapacity", strategy.maximum_over_capacity),
        ] {
            if !(0.0..=1.0).contains(&share) {
                given.invalid(key, format!("got {share:?}, expected between 0.0 and 1.0"));
            }
        }
        if is_resident && strategy.maximum_over_capacity > 0.0 {
            given.invalid("maximumOverCapacity", "must be 0 for resident tasks");
        }
    }
    strategy
}

pub(super) fn read_kill_selection(object: &Object<'_>) -> KillSelection {
    let choices =
        [("YOUNGEST_FIRST", KillSelection::YoungestFirst), ("OLDEST_FIRST", KillSelection::OldestFirst)];
    object.choice("killSelection", &choices).unwrap_or_default()
}

pub(super) fn read_unreachable_strategy(object: &Object<'_>, is_resident: bool) -> UnreachableStrategy {
    const KEY: &str = "unreachableStrategy";
    let default = if is_resident { UnreachableStrategy::Disabled } else { UnreachableStrategy::default() };
    let strategy = match object.get(KEY) {
        None => default,
        Some(Value::String(text)) if text == "disabled" => UnreachableStrategy::Disabled,
        Some(Value::String(_)) => {
            object.malformed(KEY, "error.unknown.enum.literal");
            default
        }
        Some(_) => {
            let given = object.object(KEY, &["inactiveAfterSeconds", "expungeAfterSeconds"]);
            let seconds = |key| given.as_ref().and_then(|given| given.whole(key, INT_MAX)).unwrap_or(0);
            let (inactive, expunge) = (seconds("inactiveAfterSeconds"), seconds("expungeAfterSeconds"));
            if inactive > expunge {
                object.invalid(
                    &format!("{KEY}/inactiveAfterSeconds"),
                    format!("got {inactive}, expected {expunge} or less: must not be more than expungeAfterSeconds"),
                );
            }
            UnreachableStrategy::Enabled {
                inactive_after: Duration::from_secs(inactive.into()),
                expunge_after: Duration::from_secs(expunge.into()),
            }
        }
    };
    if is_resident && strategy != UnreachableStrategy::Disabled {
        object.invalid(KEY, "unreachableStrategy must be disabled for resident tasks");
    }
    strategy
}

/// What becomes of a resident task whose agent is gone; all apps with persistent volumes have it.
pub(super) fn read_residency(object: &Object<'_>) -> Value {
    const TIMEOUT: &str = "relaunchEscalationTimeoutSeconds";
    const LOST: &str = "taskLostBehavior";
    let given = object.object("residency", &[TIMEOUT, LOST]);
    let behaviors = ["WAIT_FOREVER", "RELAUNCH_AFTER_TIMEOUT"].map(|name| (name, name));
    let timeout = given.as_ref().and_then(|given| given.whole(TIMEOUT, INT_MAX)).unwrap_or(3600);
    let lost = given.as_ref().and_then(|given| given.choice(LOST, &behaviors)).unwrap_or("WAIT_FOREVER");
    json!({TIMEOUT: timeout, LOST: lost})
}

pub(super) fn read_backoff(object: &Object<'_>) -> Backoff {
    let default = Backoff::default();
    let seconds = |key| Some(Duration::from_secs(object.whole(key, INT_MAX)?.into()));
    Backoff {
        initial: seconds("backoffSeconds").unwrap_or(default.initial),
        factor: object.number("backoffFactor", 1.0).unwrap_or(default.factor),
        max: seconds("maxLaunchDelaySeconds").unwrap_or(default.max),
    }
}

/// Artifacts in their new form; `uris` is the old one.
pub(super) fn read_fetch(object: &Object<'_>) -> Vec<Value> {
    let uris = object.texts("uris").unwrap_or_default();
    let known = ["uri", "extract", "executable", "cache", "destPath"];
    let fetch = object.objects("fetch", &known).unwrap_or_default();
    if !uris.is_empty() && !fetch.is_empty() {
        object.invalid("uris", "may not be used in conjunction with 'fetch'");
    }
    let mut artifacts = Vec::new();
    for (index, uri) in uris.into_iter().enumerate() {
        check_uri(object, &format!("uris({index})"), &uri);
        let extract = ARCHIVES.iter().any(|ending| uri.ends_with(ending));
        artifacts.push(json!({"uri": uri, "extract": extract, "executable": false, "cache": false}));
    }
    for artifact in fetch {
        artifact.require("uri");
        let uri = artifact.text("uri").unwrap_or_default();
        check_uri(&artifact, "uri", &uri);
        let flag = |key, default| artifact.flag(key).unwrap_or(default);
        let mut printed = json!({
            "uri": uri,
            "extract": flag("extract", true),
            "executable": flag("executable", false),
            "cache": flag("cache", false),
        });
        if let Some(path) = artifact.text("destPath") {
            printed["destPath"] = Value::String(path);
        }
        artifacts.push(printed);
    }
    artifacts
}

/// Endings of files that an old `uris` entry means to be unpacked.
const ARCHIVES: &[&str] = &[".tgz", ".tar.gz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz", ".zip", ".tar"];

fn check_uri(object: &Object<'_>, key: &str, uri: &str) {
    let is_clean = uri.chars().all(|character| !character.is_whitespace() && !character.is_control());
    if uri.is_empty() || !is_clean || uri.len() > URI_LENGTH_MAX {
        object.invalid(key, format!("URI must have 1 to {URI_LENGTH_MAX} characters and no blanks"));
    } else if !has_valid_scheme(uri) {
        object.invalid(key, "URI has invalid syntax.");
    }
}

/// Whether what stands before the first colon can be a scheme (RFC 3986, 3.1 and 4.2), if there is such a thing.
fn has_valid_scheme(uri: &str) -> bool {
    let Some((scheme, _)) = uri.split_once(':').filter(|(scheme, _)| !scheme.contains(['/', '?', '#']))
    else {
        return true;
    };
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic()) && scheme.bytes().all(is_allowed)
}
