//! What the kernel is to know of a node's overlay: the device's addresses, routes, rules and switches, and what becomes
//! of the source of packets that leave the networks.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mesonet_model::{Subnet, gateway_of};
use mesonet_netlink::{
    Link, MAIN_TABLE, Nat, NatRule, Netlink, NetlinkError, Route, Rule, set_switch, switch,
};
use mesonet_overlay_plan::{NodeOverlay, Outward, PlannedRoute, RouteScope, difference};
use mesonet_overlay_wg::is_in_use;

use super::inspect::in_words;

/// The tunnel's network device.
pub(super) const DEVICE: &str = "mesonet-wg";

/// Routes and rules of ours have this number in the kernel (`rtm_protocol`); none of `/etc/iproute2/rt_protos`.
const MARK: u8 = 77;

/// The table of routes for packets of tasks, as in DC/OS (spec/dcos-networking.md §2.4.3).
const TASKS_TABLE: u32 = 42;

/// The table of nftables that is ours.
const NAT_TABLE: &str = "mesonet";

/// How long to wait for a daemon that is just ending, and how often to look whether it has.
const ENDING_MAX: Duration = Duration::from_secs(2);
const ENDING_LOOK: Duration = Duration::from_millis(20);

/// What is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) overlay: NodeOverlay,
    pub(super) outward: Vec<Outward>,
}

/// Sets the switches of the device, which is new or another daemon's. What is left out.
pub(super) fn prepare() -> BTreeSet<Omission> {
    let mut omissions = BTreeSet::new();
    // Packets of other nodes themselves come by the tunnel, and go another way where they are not answers.
    for (name, value) in [("forwarding", "1"), ("rp_filter", "2")] {
        let set = set_switch(&format!("ipv4/conf/{DEVICE}/{name}"), value);
        omissions.extend(set.err().map(Omission::refused));
    }
    omissions
}

/// Waits until no daemon has the overlay of this network namespace, for a moment: it may just be ending. One that goes on
/// would put back what is removed.
///
/// # Errors
/// When one has it.
pub fn wait_until_left() -> anyhow::Result<()> {
    let deadline = Instant::now() + ENDING_MAX;
    while is_in_use(DEVICE)? {
        if Instant::now() > deadline {
            bail!(
                "a network daemon has the overlay of this host and would put back what is removed: end it first (it is \
                 whoever reads packets at {DEVICE}-io, where somebody may also listen in)"
            );
        }
        std::thread::sleep(ENDING_LOOK);
    }
    Ok(())
}

/// Removes what an overlay leaves when its daemon ends.
///
/// # Errors
/// When the kernel refuses something; the rest is removed.
pub fn clean_up() -> anyhow::Result<()> {
    let mut kernel = Netlink::open()?;
    let mut left = each(&kernel.routes(MARK)?, |route| kernel.remove_route(route, MARK));
    left.extend(each(&kernel.rules(MARK)?, |rule| kernel.remove_rule(rule, MARK)));
    left.extend(translate(&[]).err().map(Omission::refused));
    left.extend(kernel.remove_link(DEVICE).err().map(Omission::refused));
    if left.is_empty() {
        return Ok(());
    }
    bail!("a part of the overlay cannot be removed, {}", in_words(left.iter()).join("; "))
}

/// What this host cannot have, or has otherwise: the rest of the overlay is in effect without it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Omission {
    /// IPv6 is turned off.
    Ipv6,
    /// A part of another node has an address of this host, which would lose its way to the neighbours of that.
    Route { part: Subnet, own: IpAddr },
    /// Somebody has made another route to a part of another node.
    OthersRoute { part: Subnet },
    /// The kernel refuses something: the way to a part of another node, or what is not about one.
    Refused { part: Option<Subnet>, why: String },
}

impl Omission {
    /// Kinds, as metrics name them.
    pub(super) const KINDS: [&str; 4] = ["ipv6", "address", "route", "refused"];

    /// What is not about a part of another node.
    pub(super) fn refused(error: impl Into<anyhow::Error>) -> Self {
        Self::Refused { part: None, why: format!("{:#}", error.into()) }
    }

    /// Whether packets of the host itself to an address go elsewhere than through a tunnel by it.
    pub(super) fn is_about(&self, to: IpAddr) -> bool {
        match self {
            Self::Ipv6 => to.is_ipv6(),
            Self::Route { part, .. } | Self::OthersRoute { part } => part.contains(to),
            Self::Refused { part, .. } => part.is_some_and(|part| part.contains(to)),
        }
    }

    /// Of which kind it is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Ipv6 => "ipv6",
            Self::Route { .. } => "address",
            Self::OthersRoute { .. } => "route",
            Self::Refused { .. } => "refused",
        }
    }
}

impl fmt::Display for Omission {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv6 => write!(out, "IPv6, which is turned off on this host"),
            Self::Route { part, own } => {
                write!(out, "the route to {part}, in which this host has the address {own} elsewhere")
            }
            Self::OthersRoute { part } => {
                write!(out, "the route to {part}, to which somebody has made another one on this host")
            }
            Self::Refused { why, .. } => write!(out, "what the kernel refuses: {why}"),
        }
    }
}

/// What has become of what is to be.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What is left out, as far as it is known.
    pub(super) omissions: BTreeSet<Omission>,
    /// Whether the rest is in effect.
    pub(super) is_carried_out: bool,
}

impl Outcome {
    /// It could not even be tried.
    pub(super) fn failed(error: anyhow::Error) -> Self {
        Self { omissions: [Omission::refused(error)].into(), is_carried_out: false }
    }
}

/// Makes the kernel what it is to be, as far as it lets. An overlay without translation of sources is still one.
pub(super) fn reconcile(wanted: &Wanted) -> Outcome {
    let mut omissions = BTreeSet::new();
    let led = lead(&wanted.overlay, &mut omissions);
    let is_carried_out = led.is_ok();
    omissions.extend(led.err().map(Omission::refused));
    let translated = translate(&wanted.outward);
    omissions.extend(translated.err().map(Omission::refused));
    Outcome { omissions, is_carried_out }
}

/// Makes the device's addresses, and the kernel's routes and rules, what they are to be. Routes come before rules, and go
/// after them.
///
/// # Errors
/// When the rest cannot be done for want of something.
fn lead(overlay: &NodeOverlay, omissions: &mut BTreeSet<Omission>) -> anyhow::Result<()> {
    let mut kernel = Netlink::open()?;
    let device = kernel.link(DEVICE)?.context("the overlay's device is gone")?;
    kernel.set_up(&device)?;
    // Whoever sets the host's switches anew sets the device's, too.
    omissions.extend(prepare());
    let addresses = kernel.addresses()?;
    let elsewhere = addresses.iter().filter(|address| address.link != device.index);
    let elsewhere: Vec<IpAddr> = elsewhere.map(|address| address.address).collect();
    let has_ipv6 = switch(&format!("ipv6/conf/{DEVICE}/disable_ipv6")).is_some_and(|value| value == "0");
    let others = kernel.destinations_of_others(MAIN_TABLE, MARK)?;
    let (overlay, impossible) = possible(overlay, has_ipv6, &elsewhere, &others);
    omissions.extend(impossible);
    let overlay = &overlay;
    if overlay.own.iter().any(|part| !part.is_ipv4()) {
        // For IPv6 there is no switch for one interface alone before Linux 6.17.
        omissions.extend(set_switch("ipv6/conf/all/forwarding", "1").err().map(Omission::refused));
    }
    let there = addresses.into_iter().filter(|address| address.link == device.index);
    omissions.extend(give_addresses(&mut kernel, &device, overlay, there.map(|address| address.address)));
    let routes: BTreeSet<Route> = overlay.routes.iter().map(|each| route(each, device.index)).collect();
    let rules: BTreeSet<Rule> = rules(overlay);
    let routes = difference(&routes, &kernel.routes(MARK)?.into_iter().collect());
    let rules = difference(&rules, &kernel.rules(MARK)?.into_iter().collect());
    omissions.extend(each(&rules.remove, |rule| kernel.remove_rule(rule, MARK)));
    omissions.extend(each(&routes.remove, |route| kernel.remove_route(route, MARK)));
    for route in &routes.add {
        let added = kernel.add_route(route, MARK);
        omissions.extend(added.err().map(|error| unreached(route, error)));
    }
    omissions.extend(each(&rules.add, |rule| kernel.add_rule(rule, MARK)));
    Ok(())
}

/// What a host goes without that has not got a route.
fn unreached(route: &Route, error: NetlinkError) -> Omission {
    let part = Subnet::new(route.destination, route.prefix).ok();
    Omission::Refused {
        part: part.filter(|_| route.table == MAIN_TABLE),
        why: format!("{:#}", anyhow::Error::from(error)),
    }
}

/// What of an overlay a host can have that has these addresses at other interfaces and others' routes to these
/// destinations, and what it cannot.
fn possible(
    overlay: &NodeOverlay,
    has_ipv6: bool,
    elsewhere: &[IpAddr],
    others: &BTreeSet<(IpAddr, u8)>,
) -> (NodeOverlay, BTreeSet<Omission>) {
    let mut possible = overlay.clone();
    let mut omissions = BTreeSet::new();
    let has_family = |range: &Subnet| has_ipv6 || range.is_ipv4();
    possible.own.retain(has_family);
    possible.routes.retain(|route| has_family(&route.destination));
    if possible != *overlay {
        omissions.insert(Omission::Ipv6);
    }
    possible.routes.retain(|route| {
        let part = route.destination;
        let is_for_all = route.scope == RouteScope::All;
        let own = elsewhere.iter().find(|own| part.contains(**own)).filter(|_| is_for_all);
        let is_others = is_for_all && others.contains(&(part.first(), part.prefix()));
        let obstacle = match own {
            Some(own) => Some(Omission::Route { part, own: *own }),
            None => is_others.then_some(Omission::OthersRoute { part }),
        };
        let is_possible = obstacle.is_none();
        omissions.extend(obstacle);
        is_possible
    });
    (possible, omissions)
}

/// Makes the kernel translate sources so and no other way. A kernel that cannot has nothing to take back either.
fn translate(outward: &[Outward]) -> anyhow::Result<()> {
    let rules: Vec<NatRule> = outward.iter().map(nat_rule).collect();
    let there = Nat::open().and_then(|mut nat| nat.rules(NAT_TABLE).map(|there| (nat, there)));
    let (mut nat, there) = match there {
        Err(_) if rules.is_empty() => return Ok(()),
        there => there?,
    };
    if there != rules.iter().map(NatRule::to_string).collect::<Vec<_>>() {
        nat.replace(NAT_TABLE, &rules)?;
    }
    let is_ipv4 = |rule: &NatRule| matches!(rule, NatRule::TranslateFrom(address, _) if address.is_ipv4());
    if rules.iter().any(is_ipv4) {
        // Answers come in by whatever interface leads outside.
        set_switch("ipv4/ip_forward", "1")?;
    }
    Ok(())
}

fn nat_rule(outward: &Outward) -> NatRule {
    match outward {
        Outward::KeepThroughTunnel => NatRule::KeepThrough(DEVICE.to_owned()),
        Outward::KeepTo(range) => NatRule::KeepTo(range.first(), range.prefix()),
        Outward::TranslateFrom(part) => NatRule::TranslateFrom(part.first(), part.prefix()),
    }
}

/// What the node itself sends to tasks comes from the first addresses of its parts. They are the device's, too, so that
/// they are there also while no task of the node's own is in the network. What is left out.
fn give_addresses(
    kernel: &mut Netlink,
    device: &Link,
    overlay: &NodeOverlay,
    there: impl Iterator<Item = IpAddr>,
) -> BTreeSet<Omission> {
    let wanted: BTreeSet<IpAddr> = overlay.own.iter().filter_map(gateway_of).collect();
    // Linux gives devices link-local addresses by itself.
    let there: BTreeSet<IpAddr> = there.filter(|address| !is_link_local(*address)).collect();
    let difference = difference(&wanted, &there);
    let prefix = |address: &IpAddr| Subnet::host(*address).prefix();
    let mut omissions =
        each(&difference.remove, |address| kernel.remove_address(device, *address, prefix(address)));
    omissions.extend(each(&difference.add, |address| kernel.add_address(device, *address, prefix(address))));
    omissions
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Does it for each. What is left out.
fn each<T>(all: &[T], mut act: impl FnMut(&T) -> Result<(), NetlinkError>) -> BTreeSet<Omission> {
    all.iter().filter_map(|each| act(each).err()).map(Omission::refused).collect()
}

fn route(planned: &PlannedRoute, link: u32) -> Route {
    let table = match planned.scope {
        RouteScope::All => MAIN_TABLE,
        RouteScope::Tasks => TASKS_TABLE,
    };
    let (destination, prefix) = (planned.destination.first(), planned.destination.prefix());
    Route { table, destination, prefix, link, source: planned.source, mtu: None }
}

/// Packets from the node's own parts look into the table of tasks first, if it has a route of their family.
fn rules(overlay: &NodeOverlay) -> BTreeSet<Rule> {
    let of_tasks = overlay.routes.iter().filter(|route| route.scope == RouteScope::Tasks);
    let families: BTreeSet<bool> = of_tasks.map(|route| route.destination.is_ipv4()).collect();
    let own = overlay.own.iter().filter(|part| families.contains(&part.is_ipv4()));
    own.map(|part| Rule { source: part.first(), prefix: part.prefix(), table: TASKS_TABLE }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(scope: RouteScope, to: &str) -> PlannedRoute {
        PlannedRoute { scope, destination: to.parse().expect("range"), source: None }
    }

    #[test]
    fn what_a_host_cannot_have_takes_nothing_else_away() {
        let range = |text: &str| text.parse::<Subnet>().expect("range");
        let four = [
            route(RouteScope::All, "9.0.2.0/24"),
            route(RouteScope::All, "9.0.3.0/24"),
            route(RouteScope::Tasks, "10.0.0.3/32"),
        ];
        let six = route(RouteScope::All, "fd01:b:0:0:2::/80");
        let own = [range("9.0.1.0/24"), range("fd01:b:0:0:1::/80")].into();
        let routes = four.iter().copied().chain([six]).collect();
        let overlay = NodeOverlay { own, routes, ..NodeOverlay::default() };
        assert_eq!(
            possible(&overlay, true, &[[10, 0, 0, 3].into()], &[].into()),
            (overlay.clone(), [].into())
        );

        let (without, omissions) = possible(&overlay, false, &[[9, 0, 1, 1].into()], &[].into());
        assert_eq!((&without.own, &without.routes), (&[range("9.0.1.0/24")].into(), &four.into()));
        assert_eq!(omissions, [Omission::Ipv6].into());

        let (without, omissions) = possible(&overlay, true, &[[9, 0, 3, 77].into()], &[].into());
        assert_eq!((&without.own, &without.routes), (&overlay.own, &[four[0], four[2], six].into()));
        assert_eq!(
            omissions,
            [Omission::Route { part: range("9.0.3.0/24"), own: [9, 0, 3, 77].into() }].into()
        );

        // Ranges around and within a part are left to the longest prefix.
        let others = ["9.0.2.0/24", "9.0.2.0/23", "9.0.3.0/25", "10.0.0.3/32"].map(range);
        let others = others.iter().map(|range| (range.first(), range.prefix())).collect();
        let (without, omissions) = possible(&overlay, true, &[], &others);
        assert_eq!((&without.own, &without.routes), (&overlay.own, &[four[1], four[2], six].into()));
        assert_eq!(omissions, [Omission::OthersRoute { part: range("9.0.2.0/24") }].into());
        let is_elsewhere = |to: &str| {
            let to = to.parse().expect("address");
            [Omission::Ipv6].iter().chain(&omissions).any(|omission| omission.is_about(to))
        };
        assert_eq!(["9.0.2.7", "9.0.3.7", "fd01:b::7"].map(is_elsewhere), [true, false, true]);
    }
}
