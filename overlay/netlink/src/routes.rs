//! Routes and rules that are marked as those of one program, so that they are found again and no others touched.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, UdpSocket};

use crate::message::{Message, address_of, attributes, be_address, u32_of};
use crate::{Netlink, NetlinkError, failed, family_of, is_there, kind, route};

/// `RTM_DELROUTE`, `RTM_GETROUTE`, `RTM_NEWRULE`, `RTM_DELRULE` and `RTM_GETRULE`.
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// Attributes of routes and of rules (`linux/rtnetlink.h`, `linux/fib_rules.h`).
const DESTINATION: u16 = 1;
const RULE_SOURCE: u16 = 2;
const PRIORITY: u16 = 6;
const PREFERRED_SOURCE: u16 = 7;
const METRICS: u16 = 8;
const TABLE: u16 = 15;
const RULE_PROTOCOL: u16 = 21;
const METRIC_MTU: u16 = 2;

/// `RT_SCOPE_LINK`: what is reached without a gateway. IPv6 has no scopes.
const SCOPE_LINK: u8 = 253;

/// The metric of routes of IPv6 that are made without one (`IP6_RT_PRIO_USER`). Those of IPv4 have 0.
const IPV6_METRIC: u32 = 1024;

/// The kind of routes to addresses of this host (`RTN_LOCAL`).
const LOCAL: u8 = 2;

/// Errors of routes that lead nowhere: `ENETUNREACH`, `EHOSTUNREACH`, `EACCES` (prohibited), `EINVAL` (a black hole).
const NOWHERE: [i32; 4] = [101, 113, 13, 22];

/// Whether an address is this host's, as far as can be told. Where the kernel does not say, such as to a service that
/// may open no netlink sockets, it is where it can be bound to.
pub fn is_here(address: IpAddr) -> bool {
    let said = Netlink::open().and_then(|mut host| host.is_local(address));
    said.unwrap_or_else(|_| can_be_bound_to(address))
}

fn can_be_bound_to(address: IpAddr) -> bool {
    match UdpSocket::bind((address, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;

/// Errors of what is gone already: `ESRCH`, `ENOENT`, `ENODEV`, `EADDRNOTAVAIL`.
const GONE: [i32; 4] = [3, 2, 19, 99];

/// The table that is looked into unless a rule says otherwise.
pub const MAIN_TABLE: u32 = route::MAIN_TABLE as u32;

/// A way to addresses through an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The table.
    pub table: u32,
    /// The first address.
    pub destination: IpAddr,
    /// The length of the prefix that the others share.
    pub prefix: u8,
    /// The interface.
    pub link: u32,
    /// The address from which this host sends there, if it does not say another.
    pub source: Option<IpAddr>,
    /// The longest packet, if it is not that of the interface.
    pub mtu: Option<u32>,
}

/// Which table is looked into for packets from some addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The first address.
    pub source: IpAddr,
    /// The length of the prefix that the others share.
    pub prefix: u8,
    /// The table.
    pub table: u32,
}

impl Netlink {
    /// The routes with a mark.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn routes(&mut self, mark: u8) -> Result<Vec<Route>, NetlinkError> {
        let request = Message::of_route(GET_ROUTE, [0; 8]);
        let answers = self.socket.dump(request).map_err(|source| failed("list", "routes", source))?;
        Ok(answers.iter().filter_map(|body| parse_route(body, mark)).collect())
    }

    /// Where to other programs and people have routes in a table that are before those of [`Netlink::add_route`], or would be
    /// replaced by them: the first addresses, and the lengths of the prefixes.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn destinations_of_others(
        &mut self,
        table: u32,
        mark: u8,
    ) -> Result<BTreeSet<(IpAddr, u8)>, NetlinkError> {
        let request = Message::of_route(GET_ROUTE, [0; 8]);
        let answers = self.socket.dump(request).map_err(|source| failed("list", "routes", source))?;
        Ok(answers.iter().filter_map(|body| parse_other(body, table, mark)).collect())
    }

    /// Makes a route, in the place of another one to there if that is as good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_route(&mut self, route: &Route, mark: u8) -> Result<(), NetlinkError> {
        let request = route_message(kind::NEW_ROUTE, route, mark).replaces();
        let done = self.socket.order(request).or_else(is_there);
        done.map_err(|source| failed("make the route to", &route.destination.to_string(), source))
    }

    /// Removes a route, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_route(&mut self, route: &Route, mark: u8) -> Result<(), NetlinkError> {
        let request = route_message(DELETE_ROUTE, route, mark);
        let done = self.socket.order(request).or_else(is_gone);
        done.map_err(|source| failed("remove the route to", &route.destination.to_string(), source))
    }

    /// Whether an address is this host's: packets for it end here, whatever else may be bound to it or sent from it
    /// (`net.ipv4.ip_nonlocal_bind`).
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_local(&mut self, address: IpAddr) -> Result<bool, NetlinkError> {
        let octets = be_address(address);
        let length = u8::try_from(8 * octets.len()).unwrap_or(0);
        let mut request = Message::of_route(GET_ROUTE, [family_of(address), length, 0, 0, 0, 0, 0, 0]);
        request.attribute(DESTINATION, &octets);
        match self.socket.ask(request) {
            Ok(answers) => Ok(answers.iter().any(|body| body.get(7) == Some(&LOCAL))),
            Err(error) if error.raw_os_error().is_some_and(|code| NOWHERE.contains(&code)) => Ok(false),
            Err(source) => Err(failed("look for the way to", &address.to_string(), source)),
        }
    }

    /// The rules with a mark.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn rules(&mut self, mark: u8) -> Result<Vec<Rule>, NetlinkError> {
        let request = Message::of_route(GET_RULE, [0; 8]);
        let answers = self.socket.dump(request).map_err(|source| failed("list", "rules", source))?;
        Ok(answers.iter().filter_map(|body| parse_rule(body, mark)).collect())
    }

    /// Makes a rule, unless it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_rule(&mut self, rule: &Rule, mark: u8) -> Result<(), NetlinkError> {
        let request = rule_message(NEW_RULE, rule, mark).creates();
        let done = self.socket.order(request).or_else(is_there);
        done.map_err(|source| failed("make the rule for", &rule.source.to_string(), source))
    }

    /// Removes a rule, if it is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_rule(&mut self, rule: &Rule, mark: u8) -> Result<(), NetlinkError> {
        let request = rule_message(DELETE_RULE, rule, mark);
        let done = self.socket.order(request).or_else(is_gone);
        done.map_err(|source| failed("remove the rule for", &rule.source.to_string(), source))
    }
}

/// What is not there needs no removal.
pub(crate) fn is_gone(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(code) if GONE.contains(&code) => Ok(()),
        _ => Err(error),
    }
}

fn route_message(kind: u16, wanted: &Route, mark: u8) -> Message {
    let family = family_of(wanted.destination);
    let scope = if wanted.destination.is_ipv4() { SCOPE_LINK } else { 0 };
    let header = [family, wanted.prefix, 0, 0, 0, mark, scope, route::UNICAST];
    let mut request = Message::of_route(kind, header);
    request.attribute(DESTINATION, &be_address(wanted.destination));
    request.attribute(route::LINK, &wanted.link.to_ne_bytes());
    request.attribute(TABLE, &wanted.table.to_ne_bytes());
    if let Some(source) = wanted.source {
        request.attribute(PREFERRED_SOURCE, &be_address(source));
    }
    if let Some(mtu) = wanted.mtu {
        let metrics = request.begin(METRICS);
        request.attribute(METRIC_MTU, &mtu.to_ne_bytes());
        request.end(metrics);
    }
    request
}

fn rule_message(kind: u16, rule: &Rule, mark: u8) -> Message {
    let header = [family_of(rule.source), 0, rule.prefix, 0, 0, 0, 0, TO_TABLE];
    let mut request = Message::of_route(kind, header);
    request.attribute(RULE_SOURCE, &be_address(rule.source));
    request.attribute(TABLE, &rule.table.to_ne_bytes());
    request.attribute(RULE_PROTOCOL, &[mark]);
    request
}

fn parse_route(body: &[u8], mark: u8) -> Option<Route> {
    if *body.get(5)? != mark {
        return None;
    }
    let mut found = Route {
        table: u32::from(*body.get(4)?),
        destination: if body[0] == 2 { [0; 4].into() } else { [0_u16; 8].into() },
        prefix: body[1],
        link: 0,
        source: None,
        mtu: None,
    };
    for (attribute, value) in attributes(body.get(12..)?) {
        match attribute {
            DESTINATION => found.destination = address_of(value)?,
            route::LINK => found.link = u32_of(value)?,
            TABLE => found.table = u32_of(value)?,
            PREFERRED_SOURCE => found.source = address_of(value),
            METRICS => {
                let metrics = attributes(value);
                found.mtu = metrics.iter().find(|(of, _)| *of == METRIC_MTU).and_then(|(_, mtu)| u32_of(mtu));
            }
            _ => {}
        }
    }
    Some(found)
}

/// Where a route of somebody else leads, if it is in the table and no worse than one without a metric.
fn parse_other(body: &[u8], table: u32, mark: u8) -> Option<(IpAddr, u8)> {
    let theirs = parse_route(body, *body.get(5)?).filter(|route| route.table == table)?;
    let metric = attributes(body.get(12..)?).into_iter().find(|(attribute, _)| *attribute == PRIORITY);
    let metric = metric.and_then(|(_, value)| u32_of(value)).unwrap_or(0);
    let metric_max = if theirs.destination.is_ipv4() { 0 } else { IPV6_METRIC };
    (body[5] != mark && metric <= metric_max).then_some((theirs.destination, theirs.prefix))
}

fn parse_rule(body: &[u8], mark: u8) -> Option<Rule> {
    let (prefix, mut table) = (*body.get(2)?, u32::from(*body.get(4)?));
    let (mut source, mut is_marked) = (None, false);
    for (attribute, value) in attributes(body.get(12..)?) {
        match attribute {
            RULE_SOURCE => source = address_of(value),
            TABLE => table = u32_of(value)?,
            RULE_PROTOCOL => is_marked = value == [mark],
            _ => {}
        }
    }
    source.filter(|_| is_marked).map(|source| Rule { source, prefix, table })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_of_somebody_else_counts_unless_it_is_worse() {
        let (ours, theirs, table) = (77, 4, MAIN_TABLE);
        let found = |destination: &str, mark: u8, metric: Option<u32>| {
            let destination = destination.parse().expect("address");
            let route = Route { table, destination, prefix: 24, link: 3, source: None, mtu: None };
            let mut message = route_message(kind::NEW_ROUTE, &route, mark);
            if let Some(metric) = metric {
                message.attribute(PRIORITY, &metric.to_ne_bytes());
            }
            let body = message.finish(0, 1)[crate::message::HEADER_LENGTH..].to_vec();
            assert_eq!(parse_other(&body, table + 1, ours), None, "of another table");
            parse_other(&body, table, ours).map(|(address, prefix)| format!("{address}/{prefix}"))
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found("9.0.2.0", theirs, None), text("9.0.2.0/24"));
        assert_eq!(found("9.0.2.0", theirs, Some(100)), None);
        assert_eq!(found("9.0.2.0", ours, None), None);
        for (metric, is_before) in [(256, true), (1024, true), (1025, false)] {
            assert_eq!(found("fd01::", theirs, Some(metric)), text("fd01::/24").filter(|_| is_before));
        }
        assert_eq!(found("fd01::", ours, Some(1024)), None);
    }

    #[test]
    fn addresses_of_this_host_are_told_from_others() {
        let mut host = Netlink::open().expect("a socket");
        let others = ["192.0.2.1", "2001:db8::1"];
        for (address, expected) in
            [("127.0.0.1", true), ("127.9.9.9", true)].into_iter().chain(others.map(|it| (it, false)))
        {
            let address = address.parse().expect("address");
            assert_eq!(host.is_local(address).ok(), Some(expected), "{address}");
            assert_eq!(is_here(address), expected, "{address}");
        }
    }

    #[test]
    fn what_can_be_bound_to_tells_them_apart_where_the_kernel_does_not_say() {
        assert!(can_be_bound_to([127, 0, 0, 1].into()));
        assert!(!can_be_bound_to([192, 0, 2, 1].into()), "it is for documentation, and nobody's");
    }
}
