//! The HTTP API of mesos-dns and dcos-net on names (spec/dcos-networking.md §1.7 and §2.6), read-only.
//!
//! It shows the zone that is served at the moment. Lists are written while they are sent, so that a large zone takes no
//! memory of its own.

mod chunks;
mod listing;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mesonet_bus::Feed;
use mesonet_dns_server::ServedZone;
use mesonet_dns_zone::{Data, Name, Question, QuestionType, Record, Soa, Zone};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::config::{DnsOptions, ForwardZones, Listen, UpstreamSource, Upstreams, ZoneOptions};

use chunks::written_while_sent;
pub use listing::{records, zone_file};

/// Records of one name that are shown at most, as over TCP.
const RECORDS_MAX: usize = 4096;

/// What it shows, besides the zone.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// The mesos-dns zone.
    pub domain: String,
    /// Time to live of records in seconds.
    pub ttl: u32,
    /// How often the source is asked.
    pub refresh: Duration,
    /// How long it may take to answer.
    pub state_timeout: Duration,
    /// Where names are served.
    pub listen: Vec<SocketAddr>,
    /// Where this API is.
    pub http: Option<SocketAddr>,
    /// The Mesos masters that are asked.
    pub masters: Vec<String>,
    /// Weight of the SRV records of the mesos-dns zone.
    pub srv_weight: u16,
    /// Where the addresses of tasks come from, in order.
    pub ip_sources: Vec<String>,
    /// Whether all records are listed to whoever asks.
    pub enumeration: bool,
    /// Whether names are made valid by the stricter rule.
    pub rfc952: bool,
    /// Whether answers say that recursion is offered.
    pub recurse_on: bool,
    /// Where other names are asked.
    pub resolvers: Vec<String>,
    /// Where the names below some are asked.
    pub zone_resolvers: BTreeMap<String, Vec<SocketAddr>>,
    /// How masters know this server: nothing, or `basic`.
    pub authentication: &'static str,
}

/// The API.
#[derive(Debug, Clone)]
pub struct DnsApi {
    /// The zone that is served.
    pub zone: ServedZone,
    /// The view that it follows from.
    pub feed: Feed,
    /// What else is shown.
    pub settings: ApiSettings,
}

impl ApiSettings {
    /// Those of a server of these zones, as far as they follow from its settings.
    pub fn of(zone: &ZoneOptions, names: &DnsOptions, listen: Vec<SocketAddr>, http: Listen) -> Self {
        let upstreams = names.forward.iter().flat_map(|Upstreams(sources)| sources);
        let settings = Self {
            domain: zone.domain.clone(),
            ttl: zone.ttl,
            refresh: Duration::ZERO,
            state_timeout: Duration::ZERO,
            listen,
            http: match http {
                Listen::At(address) => Some(address),
                Listen::Off => None,
            },
            masters: Vec::new(),
            srv_weight: Data::SRV_WEIGHT,
            ip_sources: zone.ip_sources.to_string().split(',').map(str::to_owned).collect(),
            enumeration: true,
            rfc952: false,
            recurse_on: false,
            resolvers: upstreams.map(UpstreamSource::to_string).collect(),
            zone_resolvers: names.forward_zones.clone().map(|ForwardZones(zones)| zones).unwrap_or_default(),
            authentication: "",
        };
        Self { recurse_on: settings.forwards(), ..settings }
    }

    /// Whether other names are asked anywhere.
    pub fn forwards(&self) -> bool {
        !(self.resolvers.is_empty() && self.zone_resolvers.is_empty())
    }
}

/// Listens for the API, if it is wanted.
///
/// # Errors
/// When the address is taken or not this machine's.
pub async fn listen(address: Listen) -> anyhow::Result<Option<TcpListener>> {
    let Listen::At(address) = address else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for mesos-dns' HTTP API (choose another with --dns-http, or off)")
    })?;
    Ok(Some(listener))
}

/// There is no view yet.
struct NotReady;

impl IntoResponse for NotReady {
    fn into_response(self) -> Response {
        let message = json!({ "message": "the source of the names has not been reached yet" });
        (StatusCode::SERVICE_UNAVAILABLE, axum::Json(message)).into_response()
    }
}

impl DnsApi {
    /// Its routes. Without enumeration those that list all records do not exist, as in mesos-dns.
    pub fn router(self) -> Router {
        let listing = self.settings.enumeration.then(|| {
            Router::new()
                .route("/v1/enumerate", get(enumerate))
                .route("/v1/axfr", get(transfer))
                .route("/v1/records", get(records_list))
                .route("/v1/zone", get(zone_text))
        });
        Router::new()
            .route("/v1/version", get(version))
            .route("/v1/config", get(config))
            .route("/v1/hosts/{host}", get(host))
            .route("/v1/hosts/{host}/ports", get(ports))
            .route("/v1/services/{service}", get(service))
            .merge(listing.unwrap_or_default())
            .with_state(Arc::new(self))
    }

    fn ready(&self) -> Result<Arc<Zone>, NotReady> {
        let zone = self.zone.now();
        if zone.revision().is_some() { Ok(zone) } else { Err(NotReady) }
    }
}

/// Under the name that clients of mesos-dns know, so that those that look at it find what they look for.
async fn version() -> axum::Json<Value> {
    axum::Json(json!({
        "Service": "Mesos-DNS",
        "Version": env!("CARGO_PKG_VERSION"),
        "URL": env!("CARGO_PKG_HOMEPAGE"),
    }))
}

/// The effective configuration under the names that mesos-dns gives its parts. Credentials are not among them, nor is
/// what has no meaning here. The SOA record is there once there is a view.
async fn config(State(api): State<Arc<DnsApi>>) -> axum::Json<Value> {
    let settings = &api.settings;
    let first = settings.listen.first();
    let mut config = json!({
        "Domain": settings.domain,
        "TTL": settings.ttl,
        "RefreshSeconds": settings.refresh.as_secs(),
        "StateTimeoutSeconds": settings.state_timeout.as_secs(),
        "Masters": settings.masters,
        "Zk": "",
        "Listener": first.map(|address| address.ip().to_string()),
        "Port": first.map(SocketAddr::port),
        "HTTPListener": settings.http.map(|address| address.ip().to_string()),
        "HttpPort": settings.http.map(|address| address.port()),
        "DnsOn": true,
        "HttpOn": settings.http.is_some(),
        "ExternalOn": settings.forwards(),
        "RecurseOn": settings.recurse_on,
        "Resolvers": settings.resolvers,
        "ZoneResolvers": settings.zone_resolvers,
        "EnforceRFC952": settings.rfc952,
        "EnumerationOn": settings.enumeration,
        "SetTruncateBit": true,
        "IPSources": settings.ip_sources,
        "SRVRecordDefaultWeight": settings.srv_weight,
        "MesosAuthentication": settings.authentication,
        "MesosHTTPSOn": false,
    });
    let start = start_of(&api.zone.now(), &settings.domain);
    if let (Some(config), Some(soa)) = (config.as_object_mut(), start) {
        config.insert("SOAMname".to_owned(), json!(soa.primary.to_string()));
        config.insert("SOARname".to_owned(), json!(soa.mailbox.to_string()));
        for (key, value) in [
            ("SOASerial", soa.serial),
            ("SOARefresh", soa.refresh),
            ("SOARetry", soa.retry),
            ("SOAExpire", soa.expire),
            ("SOAMinttl", soa.minimum),
        ] {
            config.insert(key.to_owned(), json!(value));
        }
    }
    axum::Json(config)
}

/// The SOA record of the mesos-dns zone. None before the first view.
fn start_of(zone: &Zone, domain: &str) -> Option<Arc<Soa>> {
    let apex = Name::root().below(domain).ok()?;
    match zone.transfer(&apex)?.next()?.data {
        Data::Soa(soa) => Some(soa),
        _ => None,
    }
}

async fn host(State(api): State<Arc<DnsApi>>, Path(host): Path<String>) -> Result<Response, NotReady> {
    let zone = api.ready()?;
    let found = [QuestionType::A, QuestionType::Aaaa].into_iter().flat_map(|kind| ask(&zone, &host, kind));
    let mut hosts: Vec<Value> = found
        .filter_map(|record| Some(json!({ "host": record.owner.to_string(), "ip": address(&record.data)? })))
        .collect();
    if hosts.is_empty() {
        // As in mesos-dns: clients look at the first element.
        hosts.push(json!({ "host": "", "ip": "" }));
    }
    Ok(axum::Json(hosts).into_response())
}

/// Never built in mesos-dns either.
async fn ports() -> StatusCode {
    StatusCode::NOT_IMPLEMENTED
}

async fn service(State(api): State<Arc<DnsApi>>, Path(service): Path<String>) -> Result<Response, NotReady> {
    let zone = api.ready()?;
    let ports = ask(&zone, &service, QuestionType::Srv);
    let mut services = Vec::new();
    for record in &ports {
        let Data::Srv { target, port, .. } = &record.data else {
            continue;
        };
        let entry = |ip: &str| {
            json!({
                "service": service,
                "host": target.to_string(),
                "ip": ip,
                "port": port.to_string(),
            })
        };
        let host = target.to_string();
        let first = |kind| ask(&zone, &host, kind).first().and_then(|record| address(&record.data));
        let addresses = [QuestionType::A, QuestionType::Aaaa].into_iter().filter_map(first);
        services.extend(addresses.map(|ip| entry(&ip)));
    }
    if services.is_empty() {
        services.push(json!({ "service": "", "host": "", "ip": "", "port": "" }));
    }
    Ok(axum::Json(services).into_response())
}

async fn records_list(State(api): State<Arc<DnsApi>>) -> Result<Response, NotReady> {
    let zone = api.ready()?;
    Ok(written_while_sent("application/json", move |out| records(&zone, out)))
}

async fn transfer(State(api): State<Arc<DnsApi>>) -> Result<Response, NotReady> {
    let zone = api.ready()?;
    let settings = api.settings.clone();
    Ok(written_while_sent("application/json", move |out| listing::transfer(&zone, &settings, out)))
}

async fn zone_text(State(api): State<Arc<DnsApi>>) -> Result<Response, NotReady> {
    let zone = api.ready()?;
    // RFC 4027.
    Ok(written_while_sent("text/dns", move |out| zone_file(&zone, out)))
}

async fn enumerate(State(api): State<Arc<DnsApi>>) -> Result<Response, NotReady> {
    let zone = api.ready()?;
    let view = api.feed.newest().ok_or(NotReady)?;
    Ok(written_while_sent("application/json", move |out| listing::enumerate(&zone, &view, out)))
}

/// The records of a name; none if it is no name. As in mesos-dns, every `.*` is taken out.
fn ask(zone: &Zone, text: &str, kind: QuestionType) -> Vec<Record> {
    let text = text.to_ascii_lowercase().replace(".*", "");
    let bare = text.strip_suffix('.').unwrap_or(&text);
    match Name::from_labels(bare.split('.').map(str::as_bytes)) {
        Ok(name) => zone.answer(&Question { name, kind }, 0, RECORDS_MAX).answers,
        Err(_) => Vec::new(),
    }
}

fn address(data: &Data) -> Option<String> {
    match data {
        Data::A(address) => Some(address.to_string()),
        Data::Aaaa(address) => Some(address.to_string()),
        _ => None,
    }
}
