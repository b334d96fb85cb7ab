//! A file with the saved answer of `/master/state`, or with a saved view, read again whenever it changes.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use mesonet_model::ClusterView;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::SIZE_MAX;
use super::polling::StateReader;
use super::sink::Sink;

/// How often the file is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// By what a file is seen to be another one than before.
type Look = (u64, u64, Option<SystemTime>);

/// By what the forms of a file are told apart, without reading all of a large one twice.
#[derive(Deserialize)]
struct Form {
    view: Option<IgnoredAny>,
    revision: Option<IgnoredAny>,
}

/// A view as the network daemon keeps it.
#[derive(Deserialize)]
struct Kept {
    view: ClusterView,
}

/// Follows a file until it is dropped.
pub async fn follow(path: PathBuf, mut sink: Sink) {
    let mut states = StateReader::new(Vec::new());
    let mut last: Option<Look> = None;
    loop {
        match fs::metadata(&path).map(|metadata| look(&metadata)) {
            Ok(seen) if last == Some(seen) => {}
            Ok(seen) => {
                sink.metrics.attempts.inc();
                match read(&path, &mut states, &sink).await {
                    Ok(view) => sink.found(&view),
                    Err(error) => sink.lost(&error),
                }
                // What cannot be read is not read again until it changes.
                last = Some(seen);
            }
            Err(error) => {
                last = None;
                sink.lost(&cannot_read(&path, error));
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn look(metadata: &Metadata) -> Look {
    (metadata.ino(), metadata.len(), metadata.modified().ok())
}

fn cannot_read(path: &Path, error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context(format!("cannot read {}", path.display()))
}

async fn read(path: &Path, states: &mut StateReader, sink: &Sink) -> anyhow::Result<ClusterView> {
    let size = fs::metadata(path).map_err(|error| cannot_read(path, error))?.len();
    if size > SIZE_MAX as u64 {
        bail!("{} has {size} bytes, more than the {SIZE_MAX} that are read", path.display());
    }
    let (text, saved) = tokio::task::spawn_blocking({
        let path = path.to_owned();
        move || {
            let text = fs::read(&path).map_err(|error| cannot_read(&path, error))?;
            let saved = view_in(&text).with_context(|| format!("{} is no saved view", path.display()))?;
            anyhow::Ok((text, saved))
        }
    })
    .await
    .context("BUG: reading the file has failed")??;
    sink.metrics.received_bytes.inc_by(text.len() as u64);
    match saved {
        Some(view) => Ok(view),
        None => states.read(text, sink).await.with_context(|| {
            format!("{} is neither a saved view nor a saved answer of /master/state", path.display())
        }),
    }
}

/// The view in a file of the daemon or of the API; none if it has another form.
fn view_in(text: &[u8]) -> serde_json::Result<Option<ClusterView>> {
    match serde_json::from_slice(text) {
        Ok(Form { view: Some(IgnoredAny), .. }) => {
            serde_json::from_slice(text).map(|Kept { view }| Some(view))
        }
        Ok(Form { revision: Some(IgnoredAny), .. }) => serde_json::from_slice(text).map(Some),
        // What is wrong with it is said by who reads it as a state.
        Ok(Form { .. }) | Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use mesonet_model::ClusterId;
    use serde_json::json;

    use super::*;

    #[test]
    fn views_are_known_by_their_form() {
        let view = ClusterView::empty(ClusterId::new("c"));
        let kept = json!({ "format": 1, "view": view });
        for text in [kept.to_string(), json!(view).to_string()] {
            assert_eq!(view_in(text.as_bytes()).expect("a view"), Some(view.clone()), "{text}");
        }
        for text in ["{\"leader\": \"m@1:2\", \"slaves\": []}", "{", "5", ""] {
            assert_eq!(view_in(text.as_bytes()).expect("something else"), None, "{text}");
        }
        assert!(view_in(b"{\"view\": {}}").is_err(), "what is missing is said");
    }
}
