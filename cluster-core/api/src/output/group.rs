//! Groups: the tree that the apps' paths make.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_marathon::MarathonView;
use mesonet_model::Timestamp;
use serde_json::{Value, json};

use crate::embed::GroupEmbed;
use crate::output::app;

/// The root group with apps of any depth directly in it, as deployment events carry it.
pub(crate) fn flat(apps: impl Iterator<Item = Value>, version: Timestamp) -> Value {
    json!({
        "id": "/",
        "apps": apps.collect::<Vec<_>>(),
        "groups": [],
        "pods": [],
        "dependencies": [],
        "version": version,
    })
}

/// The group of this path (`/` or `/a/b`), if there is an app in it. Depth is that of the deepest app id.
pub(crate) fn tree(marathon: &MarathonView, path: &str, embed: GroupEmbed) -> Option<Value> {
    let prefix = if path == "/" { "/".to_owned() } else { format!("{path}/") };
    let mut apps = Vec::new();
    let mut groups = BTreeSet::new();
    let mut version = Timestamp::default();
    let mut is_empty = true;
    for (id, each) in &marathon.apps {
        let Some(rest) = id.as_str().strip_prefix(&prefix) else { continue };
        is_empty = false;
        version = version.max(each.definition.version);
        match rest.split_once('/') {
            Some((child, _)) => {
                groups.insert(format!("{prefix}{child}"));
            }
            None => apps.push(each),
        }
    }
    if is_empty && path != "/" {
        return None;
    }
    let mut group = BTreeMap::from([
        ("id", json!(path)),
        ("dependencies", json!([])),
        ("pods", json!([])),
        ("version", json!(version)),
        ("apps", json!([])),
        ("groups", json!([])),
    ]);
    if embed.apps {
        group.insert("apps", apps.iter().map(|each| app::info(each, embed.app)).collect());
    }
    if embed.groups {
        group.insert("groups", groups.iter().filter_map(|child| tree(marathon, child, embed)).collect());
    }
    Some(json!(group))
}
