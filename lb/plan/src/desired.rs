//! What a view wants a service to be.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use mesonet_model::{ClusterView, Delta, EndpointState, Service, ServiceKey, Vip};

use crate::{EndpointSpec, RouteState, ServiceSpec, Weighed};

/// What a service should be, given the weights of its endpoints.
///
/// A service without endpoints keeps its listeners for as long as the view has it, so that no other process takes the
/// address while the service restarts and nothing that waits in a listener's queue is lost; executors reset what
/// they accept for it at once. An endpoint that is down is left out, which is what makes executors reset its
/// connections.
pub fn desired(service: &Service, weighed: Weighed) -> ServiceSpec {
    let addresses = service.ipv4.map(IpAddr::V4).into_iter().chain(service.ipv6.map(IpAddr::V6));
    let listeners = addresses.map(|address| SocketAddr::new(address, service.key.port)).collect();
    let endpoints = weighed.endpoints.into_iter().filter_map(|(id, each)| {
        let state = match each.standing.state() {
            EndpointState::Ready => RouteState::Ready,
            EndpointState::Draining => RouteState::Draining,
            EndpointState::Down => return None,
        };
        Some((id, EndpointSpec { state, weight: each.weight }))
    });
    ServiceSpec { listeners, endpoints: endpoints.collect(), policy: service.policy }
}

/// Why a service is not reached at a virtual address that it should have, if there is one: an address for each family of
/// its endpoints, or the one that was chosen.
pub fn lack_of_address(view: &ClusterView, key: &ServiceKey) -> Option<String> {
    let service = view.services.get(key)?;
    let has_endpoints =
        |is_ipv4: bool| view.endpoints_of(key).any(|(endpoint, _)| endpoint.address.is_ipv4() == is_ipv4);
    if let Vip::Static(address) = &key.vip {
        let lacks = !service.has_address(*address) && view.endpoints_of(key).next().is_some();
        return lacks.then(|| match view.rival(key, *address) {
            Some(by) => format!("{address} with this port is that of {by}"),
            None => "no address was free".to_owned(),
        });
    }
    let lacks_ipv4 = service.ipv4.is_none() && has_endpoints(true);
    let lacks_ipv6 = service.ipv6.is_none() && has_endpoints(false);
    let is_reached = service.ipv4.is_some() || service.ipv6.is_some();
    let what = match (lacks_ipv4, lacks_ipv6) {
        (false, false) => return None,
        (true, false) if is_reached => "no IPv4 address was free",
        (false, true) if is_reached => "no IPv6 address was free",
        _ => "no address was free",
    };
    Some(what.to_owned())
}

/// The services that a delta may have changed; no other needs to be planned again.
pub fn touched(delta: &Delta) -> BTreeSet<ServiceKey> {
    // Those of one service come side by side.
    let mut services: Vec<&ServiceKey> = delta.endpoints.0.keys().map(|key| &key.service).collect();
    services.dedup();
    delta.services.0.keys().chain(services).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesonet_model::{AgentId, ClusterId, Endpoint, EndpointKey, FrameworkId, Revision, TaskId, TaskKey};

    use super::*;

    fn view() -> ClusterView {
        let mut view = ClusterView::empty(ClusterId::new("c"));
        for (text, ipv6) in [("tcp/web@marathon:80", Some("fd01:c::1")), ("tcp/1.2.3.4:5000", None)] {
            let key: ServiceKey = text.parse().expect(text);
            let ipv6 = ipv6.map(|text| text.parse().expect(text));
            let service = Service { ipv4: Some([127, 11, 0, 1].into()), ipv6, ..Service::new(key.clone()) };
            view.services.insert(key, Arc::new(service));
        }
        for (task, state) in
            [("a", EndpointState::Ready), ("b", EndpointState::Draining), ("c", EndpointState::Down)]
        {
            put_endpoint(&mut view, task, state);
        }
        view
    }

    fn planned(view: &ClusterView, key: &str) -> ServiceSpec {
        let mut planner = crate::NodePlanner::new(AgentId::new("s"));
        planner.plan(view, &key.parse().expect(key), mesonet_model::Timestamp::default())
    }

    fn put_endpoint(view: &mut ClusterView, task: &str, state: EndpointState) {
        let key = EndpointKey {
            service: "tcp/web@marathon:80".parse().expect("key"),
            task: TaskKey::new(FrameworkId::new("f"), TaskId::new(task)),
            address: "127.0.0.1:31000".parse().expect("address"),
        };
        view.endpoints.insert(key, Arc::new(Endpoint::new(AgentId::new("s"), state, 1)));
    }

    #[test]
    fn a_service_listens_on_each_address_and_has_no_dead_endpoint() {
        let spec = planned(&view(), "tcp/web@marathon:80");
        let listeners: Vec<String> = spec.listeners.iter().map(SocketAddr::to_string).collect();
        assert_eq!(listeners, ["127.11.0.1:80", "[fd01:c::1]:80"]);
        let states: Vec<_> =
            spec.endpoints.iter().map(|(id, spec)| (id.task.task.as_str(), spec.state)).collect();
        assert_eq!(states, [("a", RouteState::Ready), ("b", RouteState::Draining)]);
    }

    #[test]
    fn a_service_without_endpoints_listens_and_an_unknown_one_is_empty() {
        let view = view();
        assert_eq!(planned(&view, "tcp/1.2.3.4:5000").listeners.len(), 1);
        assert!(planned(&view, "tcp/1.2.3.4:5001").is_empty());
    }

    #[test]
    fn a_service_without_an_address_says_who_has_it() {
        let mut view = view();
        let chosen: ServiceKey = "tcp/127.11.0.1:80".parse().expect("key");
        let lack = |view: &ClusterView, key: &ServiceKey| lack_of_address(view, key);
        assert_eq!(lack(&view, &"tcp/web@marathon:80".parse().expect("key")), None);
        view.services.insert(chosen.clone(), Arc::new(Service::new(chosen.clone())));
        assert_eq!(lack(&view, &chosen), None, "nobody is behind it");
        let (key, endpoint) = view.endpoints.iter().next().expect("an endpoint");
        let (key, endpoint) = (EndpointKey { service: chosen.clone(), ..key.clone() }, Arc::clone(endpoint));
        view.endpoints.insert(key, endpoint);
        let taken = "127.11.0.1 with this port is that of tcp/web@marathon:80";
        assert_eq!(lack(&view, &chosen).as_deref(), Some(taken));
    }

    #[test]
    fn a_service_that_lacks_an_address_for_some_of_its_endpoints_says_which() {
        let key: ServiceKey = "tcp/web@marathon:80".parse().expect("key");
        let addresses: [(Option<[u8; 4]>, Option<&str>); 4] = [
            (Some([127, 11, 0, 1]), Some("fd01:c::1")),
            (Some([127, 11, 0, 1]), None),
            (None, Some("fd01:c::1")),
            (None, None),
        ];
        let lacks = |view: &ClusterView| {
            addresses.map(|(ipv4, ipv6)| {
                let ipv6 = ipv6.map(|text| text.parse().expect(text));
                let service = Service { ipv4: ipv4.map(Into::into), ipv6, ..Service::new(key.clone()) };
                let mut view = view.clone();
                view.services.insert(key.clone(), Arc::new(service));
                lack_of_address(&view, &key)
            })
        };
        let only_ipv4 = view();
        let (of_one, endpoint) = only_ipv4.endpoints.iter().next().expect("an endpoint");
        let of_other = EndpointKey { address: "[fd01:b::1]:80".parse().expect("address"), ..of_one.clone() };
        let mut both = only_ipv4.clone();
        both.endpoints.insert(of_other, Arc::clone(endpoint));

        let text = |text: &str| Some(text.to_owned());
        let (no_ipv4, no_ipv6) = (text("no IPv4 address was free"), text("no IPv6 address was free"));
        let none = text("no address was free");
        assert_eq!(lacks(&only_ipv4), [None, None, no_ipv4.clone(), none.clone()]);
        assert_eq!(lacks(&both), [None, no_ipv6, no_ipv4, none]);
    }

    #[test]
    fn only_services_of_the_delta_are_touched() {
        let old = view();
        let mut new = old.clone();
        new.revision = Revision(1);
        put_endpoint(&mut new, "d", EndpointState::Ready);
        let touched = touched(&Delta::between(&old, &new));
        assert_eq!(touched.iter().map(ToString::to_string).collect::<Vec<_>>(), ["tcp/web@marathon:80"]);
    }
}
