//! Apps as people see them.

use std::fmt::Write;

use mesonet_model::Timestamp;

use super::answers::{App, Port};
use super::table::{Column, Table};
use super::{age, task};

/// One row per app.
pub fn list(apps: &[App]) -> Table<7> {
    let mut table = Table::new([
        Column::text("ID", 60),
        Column::number("RUNNING"),
        Column::text("HEALTHY", 12),
        Column::number("CPUS"),
        Column::number("MEM"),
        Column::text("CHANGES", 12),
        Column::text("COMMAND", 40),
    ]);
    for app in apps {
        table.row([
            app.id.to_string(),
            format!("{}/{}", app.tasks_running, app.instances),
            app.health(),
            app.cpus.to_string(),
            app.mem.to_string(),
            if app.deployments.is_empty() { String::new() } else { "deploying".to_owned() },
            app.command(),
        ]);
    }
    table
}

/// All that matters of one app, what it waits for, and its tasks.
pub fn details(app: &App, obstacles: &[String], now: Timestamp) -> String {
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{name:<12}{}", value.replace(char::is_control, " "));
        }
    };
    field("App", app.id.as_str());
    field("Version", &format!("{} ({} ago)", app.version, age(now, app.version)));
    field("Instances", &instances(app));
    for obstacle in obstacles {
        field("Waiting", obstacle);
    }
    field("Resources", &format!("{} cpus, {} MiB memory, {} MiB disk", app.cpus, app.mem, app.disk));
    field("Command", &app.command());
    for port in &app.port_definitions {
        field("Port", &port_text(port));
    }
    for (name, value) in &app.labels {
        field("Label", &format!("{name}={value}"));
    }
    for (name, value) in &app.env {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        field("Variable", &format!("{name}={value}"));
    }
    for deployment in &app.deployments {
        field("Deployment", &deployment.id);
    }
    if let Some(failure) = &app.last_task_failure {
        let ago = age(now, failure.timestamp);
        field("Failure", &format!("{} ({ago} ago, {})", failure.text(), failure.task_id));
    }
    text.push('\n');
    text.push_str(&task::table(&app.tasks, now).render());
    text
}

fn instances(app: &App) -> String {
    let mut parts = vec![format!("{} of {} running", app.tasks_running, app.instances)];
    for (count, state) in
        [(app.tasks_staged, "staged"), (app.tasks_healthy, "healthy"), (app.tasks_unhealthy, "unhealthy")]
    {
        if count > 0 {
            parts.push(format!("{count} {state}"));
        }
    }
    parts.join(", ")
}

fn port_text(port: &Port) -> String {
    let name = port.name.as_deref().unwrap_or("unnamed");
    let labels: String = port.labels.iter().map(|(name, value)| format!(", {name}={value}")).collect();
    format!("{name}/{}, service port {}{labels}", port.protocol, port.port)
}
