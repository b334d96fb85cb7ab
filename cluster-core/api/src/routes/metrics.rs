//! `/metrics`: Prometheus' text, or a small JSON for clients of Marathon.

use axum::response::Response;
use prometheus::proto::{Metric, MetricType};
use prometheus::{Encoder, TextEncoder};
use serde_json::{Map, Value, json};

use crate::api::{Api, allow_get};
use crate::call::Call;
use crate::failure::Failure;
use crate::respond;

/// Answers with all instruments of the registry.
pub(crate) fn show(api: &Api, call: &Call) -> Result<Response, Failure> {
    allow_get(call)?;
    let families = api.context.metrics.gather();
    if call.accepts("application/json") && !call.accepts("text/plain") {
        let of_type = |wanted: MetricType, field: &str, read: fn(&Metric) -> f64| -> Map<String, Value> {
            let families = families.iter().filter(|family| family.get_field_type() == wanted);
            let metrics = families.flat_map(|family| {
                family.get_metric().iter().map(move |metric| (name_of(family.name(), metric), read(metric)))
            });
            metrics.map(|(name, value)| (name, json!({field: value}))).collect()
        };
        return Ok(respond::ok(&json!({
            "version": "3.0.0",
            "counters": of_type(MetricType::COUNTER, "count", |metric| metric.get_counter().get_value()),
            "gauges": of_type(MetricType::GAUGE, "value", |metric| metric.get_gauge().get_value()),
        })));
    }
    let mut text = Vec::new();
    TextEncoder::new()
        .encode(&families, &mut text)
        .map_err(|error| Failure::Internal(format!("Cannot print the metrics: {error}")))?;
    Ok(respond::text("text/plain; version=0.0.4; charset=utf-8", text))
}

fn name_of(family: &str, metric: &Metric) -> String {
    let labels = metric.get_label().iter().map(|label| format!(".{}.{}", label.name(), label.value()));
    std::iter::once(family.to_owned()).chain(labels).collect()
}
