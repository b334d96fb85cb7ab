//! Apps that wait for offers, in Marathon's form.

use mesonet_marathon::{AppView, QueueEntry, RejectSummary, UnusedOffer};
use mesonet_model::{Scalar, Timestamp};
use serde_json::{Value, json};

use crate::output::app;

/// An element of `/v2/queue`; `offers` adds the latest offer of each agent that did not fit.
pub(crate) fn entry(each: &AppView, entry: &QueueEntry, offers: bool, now: Timestamp) -> Value {
    let left = entry.backoff_until.map(|until| until.since(now)).unwrap_or_default();
    let mut summary = json!({
        "processedOffersCount": entry.processed_offers,
        "unusedOffersCount": entry.unused_offers,
        "rejectSummaryLastOffers": rejections(&entry.last_offers),
        "rejectSummaryLaunchAttempt": rejections(&entry.all_offers),
    });
    if let Some(time) = entry.last_unused_offer_at {
        summary["lastUnusedOfferAt"] = json!(time);
    }
    if let Some(time) = entry.last_used_offer_at {
        summary["lastUsedOfferAt"] = json!(time);
    }
    let mut printed = json!({
        "app": app::definition(&each.definition),
        "count": entry.count,
        "delay": {
            "timeLeftSeconds": left.as_secs() + u64::from(left.subsec_nanos() > 0),
            "overdue": left.is_zero(),
        },
        "since": entry.since,
        "processedOffersSummary": summary,
    });
    if offers {
        printed["lastUnusedOffers"] = entry.unused.iter().map(|offer| unused_offer(offer)).collect();
    }
    printed
}

fn rejections(summaries: &[RejectSummary]) -> Vec<Value> {
    let print = |summary: &RejectSummary| {
        json!({
            "reason": summary.reason.as_str(),
            "declined": summary.declined,
            "processed": summary.processed,
        })
    };
    summaries.iter().map(print).collect()
}

fn unused_offer(offer: &UnusedOffer) -> Value {
    let scalar = |name: &str, amount: Scalar| json!({"name": name, "type": "SCALAR", "scalar": amount.as_f64(), "role": "*"});
    json!({
        "offer": {
            "id": "",
            "agentId": offer.agent,
            "hostname": offer.host,
            "resources": [scalar("cpus", offer.cpus), scalar("mem", offer.mem)],
            "attributes": [],
        },
        "reason": offer.reasons.iter().map(|reason| reason.as_str()).collect::<Vec<_>>(),
        "timestamp": offer.timestamp,
    })
}
