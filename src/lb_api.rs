//! The HTTP API of a node's load balancer, read-only: `/v1/vips` as dcos-net has it (spec/dcos-networking.md §2.3.9),
//! `/v1/routes` and `/v1/explain`, and on a network daemon `/v1/services` and `/v1/addresses/ADDRESS`.

mod explanation;
mod listing;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mesonet_bus::Feed;
use mesonet_dns_server::ServedZone;
use mesonet_dns_zone::{Data, Name, Question, QuestionType};
use mesonet_lb_dataplane::{Connection, Inspector};
use mesonet_model::{AgentId, ClusterView, Protocol};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::overlay::OverlayInspector;

/// Addresses of one name that are looked at, at most.
const ADDRESSES_MAX: usize = 64;

/// Services that are named to who asks for one that is not there, at most.
const OTHERS_MAX: usize = 5;

/// The API.
#[derive(Debug, Clone)]
pub struct LbApi {
    /// The node.
    pub node: AgentId,
    /// What balances, if anything does.
    pub balancer: Option<Inspector>,
    /// The view that it follows.
    pub feed: Feed,
    /// The names of services.
    pub zone: ServedZone,
    /// Tunnels to other nodes, if there are any.
    pub overlay: Option<OverlayInspector>,
}

/// Why there is no answer.
#[derive(Debug)]
enum NoAnswer {
    /// There is no view yet.
    NotReady,
    /// Nothing balances here.
    NoBalancer,
    /// The question makes no sense.
    BadQuestion(String),
    /// Nothing is found at the address.
    NotFound(String),
}

/// `GET /v1/explain?client=10.1.2.3:4567&to=web.marathon.l4lb.thisdcos.directory:80&protocol=tcp`
#[derive(Debug, Deserialize)]
struct ExplainQuestion {
    client: String,
    to: String,
    protocol: Option<String>,
}

/// What the target of a question was resolved to.
struct Resolved {
    /// The name and its addresses; `None` if the target is an address.
    dns: Option<(String, Vec<IpAddr>)>,
    address: SocketAddr,
}

impl LbApi {
    /// Its routes, without those that an API beside it may have.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/vips", get(vips))
            .route("/v1/routes", get(routes))
            .route("/v1/explain", get(explain))
            .method_not_allowed_fallback(only_get)
            .with_state(Arc::new(self))
    }

    /// Its routes with `/v1/services` and `/v1/addresses/ADDRESS`.
    pub fn router_with_services(self) -> Router {
        let others = Router::new()
            .route("/v1/services", get(services))
            .route("/v1/addresses/{address}", get(holders))
            .method_not_allowed_fallback(only_get)
            .with_state(Arc::new(self.clone()));
        self.router().merge(others)
    }

    fn view(&self) -> Result<Arc<ClusterView>, NoAnswer> {
        self.feed.newest().ok_or(NoAnswer::NotReady)
    }

    fn balancer(&self) -> Result<&Inspector, NoAnswer> {
        self.balancer.as_ref().ok_or(NoAnswer::NoBalancer)
    }

    /// Finds out which address a client would connect to.
    fn resolve(&self, to: &str, client: IpAddr) -> Result<Resolved, NoAnswer> {
        if let Ok(address) = to.parse() {
            return Ok(Resolved { dns: None, address });
        }
        let bad = || NoAnswer::BadQuestion(format!("'{to}' is neither ADDRESS:PORT nor NAME:PORT"));
        let (name, port) = to.rsplit_once(':').ok_or_else(bad)?;
        let port: u16 = port.parse().map_err(|_| bad())?;
        let owner = Name::root().below(name.trim_end_matches('.')).map_err(|_| bad())?;
        let zone = self.zone.now();
        let kinds = [QuestionType::A, QuestionType::Aaaa];
        let records = kinds
            .into_iter()
            .flat_map(|kind| zone.answer(&Question { name: owner.clone(), kind }, 0, ADDRESSES_MAX).answers);
        let addresses: Vec<IpAddr> = records
            .filter_map(|record| match record.data {
                Data::A(address) => Some(IpAddr::V4(address)),
                Data::Aaaa(address) => Some(IpAddr::V6(address)),
                _ => None,
            })
            .collect();
        let chosen = for_client(&addresses, client);
        let chosen = chosen.ok_or_else(|| NoAnswer::NotFound(format!("the name {name} has no address")))?;
        Ok(Resolved { dns: Some((name.to_owned(), addresses)), address: SocketAddr::new(chosen, port) })
    }
}

impl IntoResponse for NoAnswer {
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Self::NotReady => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the source of the view has not been reached yet".to_owned(),
            ),
            Self::NoBalancer => {
                (StatusCode::SERVICE_UNAVAILABLE, "this node does not balance (--datapath none)".to_owned())
            }
            Self::BadQuestion(message) => (StatusCode::BAD_REQUEST, message),
            Self::NotFound(message) => (StatusCode::NOT_FOUND, message),
        };
        (status, axum::Json(json!({ "message": message }))).into_response()
    }
}

async fn only_get() -> Response {
    let message = json!({ "message": "this can only be read (GET)" });
    (StatusCode::METHOD_NOT_ALLOWED, axum::Json(message)).into_response()
}

async fn vips(State(api): State<Arc<LbApi>>, headers: HeaderMap) -> Result<Response, NoAnswer> {
    let view = api.view()?;
    let tag = tag(&view);
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    if known.flat_map(|value| value.split(',')).any(|each| is_tag(each, &tag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    Ok(([(header::ETAG, tag)], axum::Json(listing::vips(&view))).into_response())
}

/// What tells a view from every other one: another cluster may have come to the same revision.
fn tag(view: &ClusterView) -> String {
    let mut cluster = DefaultHasher::new();
    view.cluster.as_str().hash(&mut cluster);
    format!("\"{:016x}-{}\"", cluster.finish(), view.revision)
}

/// Whether an element of `If-None-Match` names the tag. A weak one is as good as it (RFC 9110 §13.1.2).
fn is_tag(element: &str, tag: &str) -> bool {
    let element = element.trim();
    element == "*" || element.strip_prefix("W/").unwrap_or(element) == tag
}

async fn routes(State(api): State<Arc<LbApi>>) -> Result<axum::Json<Value>, NoAnswer> {
    let view = api.view()?;
    let routes = api.balancer()?.routes().await.ok_or(NoAnswer::NoBalancer)?;
    Ok(axum::Json(listing::routes(&api.node, &view, &routes)))
}

async fn services(State(api): State<Arc<LbApi>>) -> Result<axum::Json<Value>, NoAnswer> {
    let view = api.view()?;
    let routes = match &api.balancer {
        Some(balancer) => balancer.routes().await,
        None => None,
    };
    Ok(axum::Json(listing::services(&api.node, &view, routes.as_ref())))
}

async fn holders(
    State(api): State<Arc<LbApi>>,
    Path(address): Path<String>,
) -> Result<axum::Json<Value>, NoAnswer> {
    let wrong = || NoAnswer::BadQuestion(format!("'{address}' is no IP address"));
    let address = address.parse().map_err(|_| wrong())?;
    Ok(axum::Json(mesonet_api::holders_answer(&*api.view()?, address)))
}

async fn explain(
    State(api): State<Arc<LbApi>>,
    question: Result<Query<ExplainQuestion>, QueryRejection>,
) -> Result<axum::Json<Value>, NoAnswer> {
    let Query(question) = question.map_err(|error| {
        NoAnswer::BadQuestion(format!(
            "{}: expected client=ADDRESS[:PORT]&to=NAME-OR-VIP:PORT and maybe &protocol=tcp or udp",
            error.body_text()
        ))
    })?;
    let view = api.view()?;
    let client = client(&question.client)?;
    let Resolved { dns, address } = api.resolve(&question.to, client.ip())?;
    let wanted = question.protocol.as_deref().map(str::parse).transpose();
    let wanted: Option<Protocol> =
        wanted.map_err(|_| NoAnswer::BadQuestion("the protocol is neither tcp nor udp".to_owned()))?;
    if client.is_ipv4() != address.is_ipv4() {
        let text = format!(
            "{} and {} are of different families, so neither reaches the other",
            client.ip(),
            address.ip()
        );
        return Err(NoAnswer::BadQuestion(text));
    }
    let balancer = api.balancer()?;
    for protocol in wanted.map_or(vec![Protocol::Tcp, Protocol::Udp], |protocol| vec![protocol]) {
        let connection = Connection { protocol, client, to: address };
        if let Some(explained) = balancer.explain(connection).await {
            let mut answer = explanation::answer(&api.node, &view, connection, dns.as_ref(), &explained);
            if let Some(overlay) = &api.overlay {
                explanation::add_tunnels(&mut answer, |to| overlay.way(&view, &api.node, to));
            }
            return Ok(axum::Json(answer));
        }
    }
    let what = wanted.map_or("service", |protocol| match protocol {
        Protocol::Tcp => "TCP service",
        Protocol::Udp => "UDP service",
    });
    Err(NoAnswer::NotFound(format!("no {what} has the address {address}{}", others(&view, address.ip()))))
}

/// What is at the same address, for who has mistaken the port.
fn others(view: &ClusterView, address: IpAddr) -> String {
    let there = view.services.values().filter(|service| service.has_address(address)).take(OTHERS_MAX);
    let there: Vec<String> = there.map(|service| service.key.to_string()).collect();
    if there.is_empty() { String::new() } else { format!("; there are {}", there.join(", ")) }
}

/// The address that a client would connect to: the first of its own family, if there is one.
fn for_client(addresses: &[IpAddr], client: IpAddr) -> Option<IpAddr> {
    let own = addresses.iter().find(|address| address.is_ipv4() == client.is_ipv4());
    own.or(addresses.first()).copied()
}

/// `ADDRESS` or `ADDRESS:PORT`.
fn client(text: &str) -> Result<SocketAddr, NoAnswer> {
    let plain = text.trim_matches(['[', ']']).parse().map(|ip: IpAddr| SocketAddr::new(ip, 0));
    text.parse().or(plain).map_err(|_| {
        NoAnswer::BadQuestion(format!("the client '{text}' is neither ADDRESS nor ADDRESS:PORT"))
    })
}

#[cfg(test)]
mod tests {
    use mesonet_model::{ClusterId, Revision};

    use super::*;

    #[test]
    fn clients_connect_to_an_address_of_their_family() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let both = ["11.0.0.1", "fd01:c::1"].map(address);
        for (addresses, client, expected) in [
            (&both[..], "10.0.0.1", Some("11.0.0.1")),
            (&both, "fd00::1", Some("fd01:c::1")),
            (&both[..1], "fd00::1", Some("11.0.0.1")),
            (&[], "10.0.0.1", None),
        ] {
            assert_eq!(for_client(addresses, address(client)), expected.map(address), "{client}");
        }
    }

    #[test]
    fn a_tag_names_one_view_of_one_cluster() {
        let view = |cluster: &str, revision| {
            let mut view = ClusterView::empty(ClusterId::new(cluster));
            view.revision = Revision(revision);
            tag(&view)
        };
        let known = view("one", 7);
        for (element, expected) in [
            (known.clone(), true),
            (format!(" W/{known} "), true),
            ("*".to_owned(), true),
            (view("one", 8), false),
            (view("another", 7), false),
            (known.trim_matches('"').to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_tag(&element, &known), expected, "{element}");
        }
    }
}
