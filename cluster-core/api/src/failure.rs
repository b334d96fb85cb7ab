//! Why a request is refused, and how Marathon says so.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mesonet_marathon::Rejection;
use mesonet_model::NetworkRefusal;
use serde_json::{Value, json};
use thiserror::Error;

use crate::json_reader::{Details, Findings};
use crate::respond;

/// How long an election takes about, as clients are told.
const ELECTION_SECONDS: HeaderValue = HeaderValue::from_static("2");

/// A request is not carried out. Nothing has changed, unless the failure says so.
#[derive(Debug, Clone, PartialEq, Error)]
pub(crate) enum Failure {
    /// The body is no JSON.
    #[error("Invalid JSON")]
    Unparsable(String),
    /// Values of the body have wrong types.
    #[error("Invalid JSON")]
    Malformed(Details),
    /// Values of the body break rules.
    #[error("Object is not valid")]
    Invalid(Details),
    /// A parameter makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// There is no such path.
    #[error("URI not found")]
    UnknownUri,
    /// The path exists but not for this method.
    #[error("HTTP 405 Method Not Allowed")]
    MethodNotAllowed(&'static str),
    /// The body is longer than the bound.
    #[error("The request body is larger than {0} bytes")]
    TooLarge(usize),
    /// The body does not come in time.
    #[error("The request body did not come within {0} seconds")]
    TooSlow(u64),
    /// A part of Marathon that is not there.
    #[error("{0}")]
    NotImplemented(&'static str),
    /// The control plane does not answer.
    #[error("{0}")]
    Unavailable(&'static str),
    /// Nobody leads.
    #[error("There is no leader at present; nothing has been changed")]
    NoLeader,
    /// The leader has gone before it has answered.
    #[error("The leader is gone before it has answered: it is unknown whether the change was made")]
    Unknown,
    /// Masters forward the request to each other.
    #[error("The masters do not agree who leads: the request was forwarded in a circle")]
    Loop,
    /// A file or a metric cannot be read.
    #[error("{0}")]
    Internal(String),
    /// The master refuses a network.
    #[error("{0}")]
    Network(#[from] NetworkRefusal),
    /// Marathon refuses.
    #[error("{0}")]
    Rejected(#[from] Rejection),
}

impl Failure {
    /// The failure that findings amount to, if they hold a fault: malformed values hide broken rules.
    pub(crate) fn of(findings: Findings) -> Option<Self> {
        let (malformed, invalid) = findings.into_faults();
        if !malformed.is_empty() {
            Some(Self::Malformed(malformed))
        } else if !invalid.is_empty() {
            Some(Self::Invalid(invalid))
        } else {
            None
        }
    }

    /// `App '/x' does not exist`.
    pub(crate) fn no_app(id: &str) -> Self {
        Self::NotFound(format!("App '{id}' does not exist"))
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Unparsable(_) | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Malformed(_) | Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotFound(_) | Self::UnknownUri => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable(_) | Self::NoLeader | Self::Unknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Loop => StatusCode::BAD_GATEWAY,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Network(NetworkRefusal::Unknown(_)) => StatusCode::NOT_FOUND,
            Self::Network(NetworkRefusal::Exists(_) | NetworkRefusal::InUse { .. }) => StatusCode::CONFLICT,
            Self::Network(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Rejected(rejection) => status_of(rejection),
        }
    }

    fn body(&self) -> Value {
        let message = self.to_string();
        match self {
            Self::Unparsable(text) => json!({"message": message, "details": text}),
            Self::Malformed(details) | Self::Invalid(details) => {
                json!({"message": message, "details": printed(details)})
            }
            Self::Rejected(Rejection::Locked(deployments)) => {
                let deployments: Vec<Value> = deployments.iter().map(|id| json!({"id": id})).collect();
                json!({"message": message, "deployments": deployments})
            }
            Self::Rejected(Rejection::DependencyCycle(_)) => rule_broken("/dependencies", &message),
            Self::Rejected(Rejection::PlaceTaken(_)) => rule_broken("/id", &message),
            Self::Rejected(_)
            | Self::BadRequest(_)
            | Self::NotFound(_)
            | Self::UnknownUri
            | Self::MethodNotAllowed(_)
            | Self::TooLarge(_)
            | Self::TooSlow(_)
            | Self::NotImplemented(_)
            | Self::Unavailable(_)
            | Self::NoLeader
            | Self::Unknown
            | Self::Loop
            | Self::Internal(_)
            | Self::Network(_) => json!({"message": message}),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = respond::json(self.status(), &self.body());
        match self {
            Self::MethodNotAllowed(allowed) => {
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
            }
            Self::NoLeader | Self::Unknown => {
                response.headers_mut().insert(header::RETRY_AFTER, ELECTION_SECONDS);
            }
            _ => {}
        }
        response
    }
}

fn status_of(rejection: &Rejection) -> StatusCode {
    match rejection {
        Rejection::AppExists(_)
        | Rejection::Stale(_)
        | Rejection::Locked(_)
        | Rejection::ServicePortsExhausted { .. } => StatusCode::CONFLICT,
        Rejection::UnknownApp(_)
        | Rejection::UnknownTask(_)
        | Rejection::UnknownDeployment(_)
        | Rejection::NotQueued(_) => StatusCode::NOT_FOUND,
        Rejection::TooManyDeployments(_) => StatusCode::FORBIDDEN,
        Rejection::DependencyCycle(_) | Rejection::PlaceTaken(_) => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

fn rule_broken(path: &str, message: &str) -> Value {
    json!({"message": "Object is not valid", "details": [{"path": path, "errors": [message]}]})
}

fn printed(details: &Details) -> Vec<Value> {
    let path_of = |path: &str| if path.is_empty() { "/".to_owned() } else { path.to_owned() };
    details.iter().map(|(path, errors)| json!({"path": path_of(path), "errors": errors})).collect()
}
