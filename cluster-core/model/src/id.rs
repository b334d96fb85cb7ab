//! Identifiers as newtypes, so that one kind is never given where another is meant.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::TASK_ID_LENGTH_MAX;

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Wraps the id's text.
            pub fn new(text: impl AsRef<str>) -> Self {
                Self(Arc::from(text.as_ref()))
            }

            /// The id's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

string_id! {
    /// A cluster, a UUID (v4) made once.
    ClusterId
}
string_id! {
    /// A Mesos agent: `<cluster id>-S<n>`.
    AgentId
}
string_id! {
    /// A Mesos framework: `<cluster id>-<nnnn>`.
    FrameworkId
}
string_id! {
    /// A Mesos task, unique within its framework; chosen by the framework.
    TaskId
}
string_id! {
    /// A resource offer: `<cluster id>-O<n>`.
    OfferId
}
string_id! {
    /// A Marathon deployment, a UUID.
    DeploymentId
}
string_id! {
    /// A master, a UUID.
    MasterId
}

/// The longest path that an app is created with, in bytes: the ids of its tasks are its own without the first slash and
/// what follows here. Longer ones may be in a store; they cannot be launched.
pub const APP_ID_LENGTH_MAX: usize =
    1 + TASK_ID_LENGTH_MAX - ".instance-00000000-0000-0000-0000-000000000000._app.1".len();

/// An absolute Marathon path, such as `/web/nginx`, that names an app.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AppId(Arc<str>);

/// Why a text is no app id. The texts are those of Marathon's API.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AppIdError {
    /// The path is `/` or has no segment at all.
    #[error("must not be empty or the root path")]
    Empty,
    /// `..` leads above the root.
    #[error("path '{0}' leads above the root")]
    AboveRoot(String),
    /// A segment has characters that Marathon refuses.
    #[error(
        "must fully match regular expression '^(([a-z0-9]|[a-z0-9][a-z0-9\\-]*[a-z0-9])\\.)*([a-z0-9]|[a-z0-9][a-z0-9\\-]*[a-z0-9])|(\\.|\\.\\.)$'"
    )]
    Segment(String),
    /// The last segment is one that the API uses itself.
    #[error("app id must not end with '{0}', which is reserved")]
    Reserved(String),
}

impl AppId {
    /// Parses a path, relative ones against the root; double and trailing slashes are ignored, `.` and `..` resolved.
    pub fn parse(text: &str) -> Result<Self, AppIdError> {
        let mut segments: Vec<&str> = Vec::new();
        for segment in text.split('/') {
            match segment {
                "" | "." => {}
                ".." => {
                    segments.pop().ok_or_else(|| AppIdError::AboveRoot(text.to_owned()))?;
                }
                _ if is_segment(segment) => segments.push(segment),
                _ => return Err(AppIdError::Segment(segment.to_owned())),
            }
        }
        match segments.last() {
            None => Err(AppIdError::Empty),
            Some(last) if matches!(*last, "restart" | "tasks" | "versions") => {
                Err(AppIdError::Reserved((*last).to_owned()))
            }
            Some(_) => Ok(Self(Arc::from(format!("/{}", segments.join("/"))))),
        }
    }

    /// The path with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path's segments from the root on.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0[1..].split('/')
    }

    /// The groups that the path leads through, from the outermost on, so that they can be looked for among apps.
    pub fn groups(&self) -> impl Iterator<Item = Self> {
        self.0.match_indices('/').skip(1).map(|(end, _)| Self(Arc::from(&self.0[..end])))
    }

    /// The name of the app's tasks and of their discovery information: the segments reversed and joined by dots,
    /// `/web/nginx` → `nginx.web`, as Marathon does.
    pub fn task_name(&self) -> String {
        self.segments().rev().collect::<Vec<_>>().join(".")
    }

    /// The first part of the ids of the app's tasks: `/web/nginx` → `web_nginx`.
    pub fn task_id_prefix(&self) -> String {
        self.segments().collect::<Vec<_>>().join("_")
    }
}

/// Whether a path segment is one or more RFC 1123 labels joined by dots.
fn is_segment(segment: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    segment.split('.').all(is_label)
}

impl FromStr for AppId {
    type Err = AppIdError;

    fn from_str(text: &str) -> Result<Self, AppIdError> {
        Self::parse(text)
    }
}

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

crate::text_key::serde_as_text!(AppId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn app_ids_become_absolute_and_clean() {
        for (text, expected) in [
            ("web", "/web"),
            ("/web/", "/web"),
            ("//web//nginx", "/web/nginx"),
            ("/web/../api/./v1", "/api/v1"),
            ("a.b-c/1", "/a.b-c/1"),
        ] {
            assert_eq!(AppId::parse(text).expect(text).as_str(), expected);
        }
    }

    #[test]
    fn bad_app_ids_are_refused_with_the_reason() {
        for (text, expected) in [
            ("", AppIdError::Empty),
            ("/", AppIdError::Empty),
            ("/..", AppIdError::AboveRoot("/..".into())),
            ("/Web", AppIdError::Segment("Web".into())),
            ("/a..b", AppIdError::Segment("a..b".into())),
            ("/-a", AppIdError::Segment("-a".into())),
            ("/a/tasks", AppIdError::Reserved("tasks".into())),
        ] {
            assert_eq!(AppId::parse(text), Err(expected), "{text}");
        }
    }

    #[test]
    fn task_names_are_the_segments_reversed() {
        let id = AppId::parse("/web/nginx").expect("valid");
        assert_eq!(id.task_name(), "nginx.web");
        assert_eq!(id.task_id_prefix(), "web_nginx");
    }

    #[test]
    fn a_path_leads_through_its_groups() {
        let groups = |text: &str| {
            AppId::parse(text).expect(text).groups().map(|id| id.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(groups("/a/b-c/d"), ["/a", "/a/b-c"]);
        assert!(groups("/a").is_empty());
    }
}
