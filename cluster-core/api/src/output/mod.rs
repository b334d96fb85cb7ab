//! What answers and events look like. Only keys that every known client accepts are printed.

pub(crate) mod app;
pub(crate) mod deployment;
pub(crate) mod event;
pub(crate) mod group;
pub(crate) mod queue;
pub(crate) mod task;

/// Marathon's name for an instance: a task's id up to the part that names its attempt.
pub(crate) fn instance_id(task: &str) -> &str {
    task.split_once("._app").map_or(task, |(instance, _)| instance)
}

/// `IPv4` or `IPv6`.
pub(crate) fn address_json(address: &std::net::IpAddr) -> serde_json::Value {
    let protocol = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    serde_json::json!({"ipAddress": address, "protocol": protocol})
}
