//! `mesonet dev`: flags and environment variables of a local cluster.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use mesonet::config::{
    Amount, Datapath, DevOptions, DevSettings, Grace, LogFormat, PortSpan, Switch, VipRange,
};

/// A flag wins over its environment variable, which wins over the configuration file.
#[derive(Debug, Clone, Default, Args)]
pub struct DevArguments {
    /// Configuration file (TOML) with these settings, named as the flags
    #[arg(long, env = "MESONET_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where state and sandboxes are kept [default: a temporary directory]
    #[arg(long, env = "MESONET_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Address of the API [default: 127.0.0.1:8080]
    #[arg(long, env = "MESONET_HTTP", value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Address of the DNS server, UDP and TCP [default: 127.0.0.1:8053]
    #[arg(long, env = "MESONET_DNS", value_name = "ADDR")]
    dns: Option<SocketAddr>,
    /// What balances VIPs: proxy, ebpf, auto or none [default: proxy]
    #[arg(long, env = "MESONET_DATAPATH", value_name = "NAME")]
    datapath: Option<Datapath>,
    /// The encrypted network between containers: on or off [default: off]
    #[arg(long, env = "MESONET_OVERLAY", value_name = "on|off")]
    overlay: Option<Switch>,
    /// Addresses of named VIPs [default: 127.11.0.0/16]
    #[arg(long, env = "MESONET_VIP_RANGE", value_name = "RANGE")]
    vip_range: Option<VipRange>,
    /// Cores to offer [default: all]
    #[arg(long, env = "MESONET_CPUS", value_name = "N")]
    cpus: Option<Amount>,
    /// Memory to offer, in MiB [default: all but a share for the system]
    #[arg(long, env = "MESONET_MEM", value_name = "MIB")]
    mem: Option<Amount>,
    /// Disk space to offer, in MiB [default: what is free but a share for the system]
    #[arg(long, env = "MESONET_DISK", value_name = "MIB")]
    disk: Option<Amount>,
    /// Host ports to offer [default: 31000-32000]
    #[arg(long, env = "MESONET_HOST_PORTS", value_name = "FIRST-LAST")]
    host_ports: Option<PortSpan>,
    /// Ports that Marathon gives to services [default: 10000-20000]
    #[arg(long, env = "MESONET_SERVICE_PORTS", value_name = "FIRST-LAST")]
    service_ports: Option<PortSpan>,
    /// The longest wait for open connections before a task is killed [default: 10s]
    #[arg(long, env = "MESONET_DRAIN_GRACE", value_name = "TIME")]
    drain_grace: Option<Grace>,
    /// What is logged, such as info,mesonet_agent=debug [default: info]
    #[arg(long, env = "MESONET_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// The form of log lines: text or json [default: text]
    #[arg(long, env = "MESONET_LOG_FORMAT", value_name = "FORM")]
    log_format: Option<LogFormat>,
}

/// Runs a local cluster until SIGINT or SIGTERM.
pub fn run(arguments: DevArguments) -> anyhow::Result<()> {
    let settings = DevSettings {
        dir: arguments.dir,
        http: arguments.http,
        dns: arguments.dns,
        datapath: arguments.datapath,
        overlay: arguments.overlay,
        vip_range: arguments.vip_range,
        cpus: arguments.cpus,
        mem: arguments.mem,
        disk: arguments.disk,
        host_ports: arguments.host_ports,
        service_ports: arguments.service_ports,
        drain_grace: arguments.drain_grace,
        log: arguments.log,
        log_format: arguments.log_format,
    };
    mesonet::run_dev(DevOptions::resolve(settings, arguments.config.as_deref())?)
}
