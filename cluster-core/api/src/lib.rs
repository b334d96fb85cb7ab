//! HTTP surfaces: Marathon v2, Mesos state, mesonet v1.

#![forbid(unsafe_code)]

mod context;

pub use context::{Answer, Context, Request, SandboxChunk, SandboxError, SandboxReader, State};

/// All routes.
pub fn router(context: Context) -> axum::Router {
    axum::Router::new().with_state(context)
}
