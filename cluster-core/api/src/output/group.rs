//! Groups: the tree that the apps' paths make.

use mesonet_marathon::{AppView, MarathonView};
use mesonet_model::Timestamp;
use serde_json::{Value, json};

use crate::embed::GroupEmbed;
use crate::output::app;

/// Groups are shown so deep; the apps below are shown in the deepest one. No id that is accepted has as many segments,
/// but a store may have one from before, and making and writing a tree takes stack for each level.
const DEPTH_MAX: usize = 128;

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

/// The group of this path (`/` or `/a/b`), if there is an app in it.
pub(crate) fn tree(marathon: &MarathonView, path: &str, embed: GroupEmbed) -> Option<Value> {
    let prefix = format!("{}/", path.trim_end_matches('/'));
    let inside = marathon.apps.values().filter(|app| app.definition.id.as_str().starts_with(&prefix));
    let inside: Vec<&AppView> = inside.map(|app| &**app).collect();
    (!inside.is_empty() || path == "/").then(|| group(path, &inside, DEPTH_MAX, embed))
}

/// The group of this path with the apps that are inside, which are in the order of their ids.
fn group(path: &str, inside: &[&AppView], depth: usize, embed: GroupEmbed) -> Value {
    let child = |app| child(app, path).filter(|_| depth > 0);
    let mut apps = Vec::new();
    let mut groups = Vec::new();
    // What is in one group has the beginning of its id in common, so that it is together in that order.
    for chunk in inside.chunk_by(|one, next| child(one) == child(next)) {
        match chunk.first().and_then(|app| child(app)) {
            Some(child) if embed.groups => groups.push(group(child, chunk, depth - 1, embed)),
            Some(_) => {}
            None if embed.apps => apps.extend(chunk.iter().map(|each| json!(app::info(each, embed.app)))),
            None => {}
        }
    }
    let version = inside.iter().map(|app| app.definition.version).max().unwrap_or_default();
    json!({
        "id": path,
        "dependencies": [],
        "pods": [],
        "version": version,
        "apps": apps,
        "groups": groups,
    })
}

/// The path of the group in the group of this path that an app inside is in, unless it is in that one itself.
fn child<'app>(app: &'app AppView, path: &str) -> Option<&'app str> {
    let id = app.definition.id.as_str();
    let begin = path.trim_end_matches('/').len() + 1;
    let (name, _) = id[begin..].split_once('/')?;
    Some(&id[..begin + name.len()])
}
