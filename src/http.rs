//! The HTTP servers of the roles.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;

/// Listens for HTTP; `purpose` is for whoever reads that it failed.
///
/// # Errors
/// When the address is taken or not this machine's.
pub async fn listen(address: SocketAddr, purpose: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address} for {purpose} (choose another with --http)"))
}

/// The address that others are told: an unspecified one cannot be connected to.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), address.port())
    } else {
        address
    }
}

/// What a process without an API shows: `/metrics` and whether it lives.
pub fn metrics_only(registry: Registry) -> Router {
    Router::new()
        .route("/metrics", get(move || std::future::ready(metrics(&registry))))
        .route("/v1/health/live", get(|| std::future::ready("{\"live\":true}\n")))
}

fn metrics(registry: &Registry) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
