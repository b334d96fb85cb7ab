//! Settings of `mesonet dev`: what flags, environment and file say, merged into one checked value.
//!
//! A setting given by a flag wins over one from a `MESONET_*` variable, which wins over the file. The command line
//! reads the first two into [`DevSettings`]; [`DevOptions::resolve`] adds the file and the defaults. Every value has
//! one text form, the same in all three places, read by the `FromStr` of its type.

mod file;
mod values;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use mesonet_model::Scalar;

pub use file::{ConfigError, ConfigProblem};
pub use values::{Amount, Datapath, Grace, LogFormat, PortSpan, Switch, ValueError, VipRange};

/// What was said about a local cluster; `None` where nothing was said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DevSettings {
    /// Where state, checkpoints and sandboxes are kept.
    pub dir: Option<PathBuf>,
    /// Address of API and web page.
    pub http: Option<SocketAddr>,
    /// Address of the DNS server, UDP and TCP.
    pub dns: Option<SocketAddr>,
    /// Which data plane balances VIPs.
    pub datapath: Option<Datapath>,
    /// The encrypted network between containers.
    pub overlay: Option<Switch>,
    /// Addresses of named VIPs.
    pub vip_range: Option<VipRange>,
    /// Cores to offer.
    pub cpus: Option<Amount>,
    /// Memory to offer in MiB.
    pub mem: Option<Amount>,
    /// Disk space to offer in MiB.
    pub disk: Option<Amount>,
    /// Host ports to offer.
    pub host_ports: Option<PortSpan>,
    /// Ports that Marathon gives to services.
    pub service_ports: Option<PortSpan>,
    /// The longest wait for open connections before a task is killed.
    pub drain_grace: Option<Grace>,
    /// What is logged.
    pub log: Option<String>,
    /// The form of log lines.
    pub log_format: Option<LogFormat>,
}

/// The settings of a local cluster, complete.
#[derive(Debug, Clone, PartialEq)]
pub struct DevOptions {
    /// Where state, checkpoints and sandboxes are kept; a temporary directory if absent.
    pub dir: Option<PathBuf>,
    /// Address of API and web page.
    pub http: SocketAddr,
    /// Address of the DNS server, UDP and TCP.
    pub dns: SocketAddr,
    /// Which data plane balances VIPs.
    pub datapath: Datapath,
    /// The encrypted network between containers.
    pub overlay: Switch,
    /// Addresses of named VIPs.
    pub vip_range: VipRange,
    /// Cores to offer; as many as there are if absent.
    pub cpus: Option<Scalar>,
    /// Memory to offer in MiB; what there is, less a share for the system, if absent.
    pub mem: Option<Scalar>,
    /// Disk space to offer in MiB; what is free, less a share for the system, if absent.
    pub disk: Option<Scalar>,
    /// Host ports to offer.
    pub host_ports: PortSpan,
    /// Ports that Marathon gives to services.
    pub service_ports: PortSpan,
    /// The longest wait for open connections before a task is killed.
    pub drain_grace: Duration,
    /// What is logged, such as `info,mesonet_agent=debug`.
    pub log: String,
    /// The form of log lines.
    pub log_format: LogFormat,
}

impl DevOptions {
    /// Completes what flags and environment said with a file, if one is named, and the defaults.
    /// Every mistake in the file is reported, not only the first.
    pub fn resolve(given: DevSettings, file: Option<&std::path::Path>) -> Result<Self, ConfigError> {
        let file = match file {
            Some(path) => file::read(path)?,
            None => DevSettings::default(),
        };
        Ok(given.or(file).with_defaults())
    }
}

impl Default for DevOptions {
    fn default() -> Self {
        DevSettings::default().with_defaults()
    }
}

impl DevSettings {
    /// These settings, and the others where these say nothing.
    fn or(self, others: Self) -> Self {
        Self {
            dir: self.dir.or(others.dir),
            http: self.http.or(others.http),
            dns: self.dns.or(others.dns),
            datapath: self.datapath.or(others.datapath),
            overlay: self.overlay.or(others.overlay),
            vip_range: self.vip_range.or(others.vip_range),
            cpus: self.cpus.or(others.cpus),
            mem: self.mem.or(others.mem),
            disk: self.disk.or(others.disk),
            host_ports: self.host_ports.or(others.host_ports),
            service_ports: self.service_ports.or(others.service_ports),
            drain_grace: self.drain_grace.or(others.drain_grace),
            log: self.log.or(others.log),
            log_format: self.log_format.or(others.log_format),
        }
    }

    fn with_defaults(self) -> DevOptions {
        let amount = |amount: Option<Amount>| amount.map(|Amount(scalar)| scalar);
        DevOptions {
            dir: self.dir,
            http: self.http.unwrap_or(HTTP_DEFAULT),
            dns: self.dns.unwrap_or(DNS_DEFAULT),
            datapath: self.datapath.unwrap_or_default(),
            overlay: self.overlay.unwrap_or_default(),
            vip_range: self.vip_range.unwrap_or(VIP_RANGE_DEFAULT),
            cpus: amount(self.cpus),
            mem: amount(self.mem),
            disk: amount(self.disk),
            host_ports: self.host_ports.unwrap_or(HOST_PORTS_DEFAULT),
            service_ports: self.service_ports.unwrap_or(SERVICE_PORTS_DEFAULT),
            drain_grace: self.drain_grace.map_or(DRAIN_GRACE_DEFAULT, |Grace(duration)| duration),
            log: self.log.unwrap_or_else(|| LOG_DEFAULT.to_owned()),
            log_format: self.log_format.unwrap_or_default(),
        }
    }
}

/// Marathon's own port, on loopback, since the API asks nobody who they are.
pub const HTTP_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Port 53 needs privileges.
pub const DNS_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8053);

/// All of 127/8 is local, so listening on VIPs in it needs no rights; 11 as in DC/OS' 11.0.0.0/8.
pub const VIP_RANGE_DEFAULT: VipRange =
    VipRange { first: Ipv4Addr::new(127, 11, 0, 0), last: Ipv4Addr::new(127, 11, 255, 255) };

/// What Mesos agents offer by default.
pub const HOST_PORTS_DEFAULT: PortSpan = PortSpan { first: 31_000, last: 32_000 };

/// Marathon's `--local_port_min` and `--local_port_max`.
pub const SERVICE_PORTS_DEFAULT: PortSpan = PortSpan { first: 10_000, last: 20_000 };

/// Long enough for ordinary requests to end, short enough for a person to wait for.
pub const DRAIN_GRACE_DEFAULT: Duration = Duration::from_secs(10);

/// State changes that an operator could notice, and everything worse.
pub const LOG_DEFAULT: &str = "info";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_wins_over_the_file_and_the_file_over_defaults() {
        let given = DevSettings { cpus: "2".parse().ok(), ..DevSettings::default() };
        let file = DevSettings { cpus: "8".parse().ok(), mem: "512".parse().ok(), ..DevSettings::default() };
        let options = given.or(file).with_defaults();
        assert_eq!(options.cpus, Some(Scalar::from_units(2)));
        assert_eq!(options.mem, Some(Scalar::from_units(512)));
        assert_eq!(options.http, HTTP_DEFAULT);
    }
}
