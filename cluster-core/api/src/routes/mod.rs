//! Which path is answered where.

mod addresses;
mod app_writes;
mod apps;
mod deployments;
mod events;
mod front;
mod groups;
mod marathon_info;
mod metrics;
mod native;
mod networks;
mod tasks;

#[cfg(test)]
mod duty_tests;
#[cfg(test)]
mod event_tests;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod front_tests;
#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod label_tests;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod task_tests;
#[cfg(test)]
mod tests;

use axum::response::Response;

pub use self::addresses::holders_answer;

use crate::api::{Api, allow_get};
use crate::call::Call;
use crate::failure::Failure;
use crate::respond;

/// Answers a request.
pub(crate) async fn route(api: &Api, call: &Call) -> Result<Response, Failure> {
    let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
    match segments.as_slice() {
        ["ping"] => {
            allow_get(call)?;
            Ok(respond::text("text/plain; charset=utf-8", "pong"))
        }
        ["metrics"] => metrics::show(api, call),
        ["v1", rest @ ..] => native::route(api, call, rest).await,
        ["v2", "apps", rest @ ..] => apps::route(api, call, rest).await,
        ["v2", "tasks", rest @ ..] => tasks::route(api, call, rest).await,
        ["v2", "deployments", rest @ ..] => deployments::route(api, call, rest).await,
        ["v2", "queue", rest @ ..] => deployments::route_queue(api, call, rest).await,
        ["v2", "groups", rest @ ..] => groups::route(api, call, rest),
        ["v2", "events"] => events::listen(api, call),
        ["v2", rest @ ..] => marathon_info::route(api, call, rest),
        _ => front::route(api, call, &segments),
    }
}
