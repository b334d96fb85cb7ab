//! Settings of the roles: what flags, environment and file say, merged into one checked value per role.
//!
//! A setting given by a flag wins over one from a `MESONET_*` variable, which wins over the file. The command line
//! reads the first two into a [`Settings`]; [`Settings::resolve`] adds the file and the defaults. Every value has
//! one text form, the same in all three places, read by the `FromStr` of its type.

mod dns_values;
mod file;
mod mesos_dns;
mod packet_values;
mod settings;
mod source;
mod values;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use mesonet_bus::NodeName;

use settings::settings;

pub use dns_values::{
    ForwardZones, IpSources, NamedTasks, Networks, OnOverload, SearchDomains, UpstreamSource, Upstreams,
    Views,
};
pub use file::{ConfigError, ConfigProblem, Keys};
pub use mesos_dns::{Credentials, MesosDnsConfig, MesosDnsConfigError};
pub use packet_values::{Interfaces, PacketPlace};
pub use settings::{DefaultText, SettingText, Settings};
pub use source::{Endpoint, Source};
pub use values::{
    Amount, Datapath, Endpoints, Grace, Listen, LogFormat, Masters, Percent, PortSpan, StoreKind, Switch,
    ValueError, VipRange,
};

// API and DNS are on loopback by default: the API asks nobody who they are, and port 53 needs privileges. All of
// 127/8 is local, so listening on VIPs in it needs no rights on any node; 11 as in DC/OS' 11.0.0.0/8. Host ports are
// those of Mesos agents, service ports Marathon's `--local_port_min` and `--local_port_max`. The drain's grace is long
// enough for ordinary requests to end, short enough for a person to wait for.

settings! {
    /// How the kernel balances, where it does.
    SocketSettings => SocketOptions {
        cgroup: optional PathBuf, "cgroup", "MESONET_CGROUP", "DIR",
            "The cgroup (version 2) whose processes reach VIPs through the kernel",
            "the root of the mount with 'datapath = ebpf', no cgroup with 'auto'";
        bpffs: fixed PathBuf, "bpffs", "MESONET_BPFFS", "DIR",
            "Where a BPF file system is mounted, which keeps the programs while the daemon is away", "/sys/fs/bpf";
        packet_interface: optional Interfaces, "packet-interface", "MESONET_PACKET_INTERFACE", "NAME,...",
            "Interfaces through which others than this node's processes reach VIPs, by the kernel", "none";
        packet_mode: fixed PacketPlace, "packet-mode", "MESONET_PACKET_MODE", "auto|xdp|xdp-generic|tc",
            "Where their packets are met: xdp (in the driver), xdp-generic, tc, or auto (xdp on network cards, tc elsewhere)",
            "auto";
        packet_masquerade: fixed Switch, "packet-masquerade", "MESONET_PACKET_MASQUERADE", "on|off",
            "Whether endpoints elsewhere see this node's address instead of the clients'; if off, their replies must come back through this node by themselves",
            "on";
    }
}

settings! {
    /// How names are served.
    DnsSettings => DnsOptions {
        forward: optional Upstreams, "forward", "MESONET_FORWARD", "IP[:PORT],...",
            "DNS servers for names outside the zones, or 'system' for those of /etc/resolv.conf",
            "such names are refused";
        forward_zones: optional ForwardZones, "forward-zones", "MESONET_FORWARD_ZONES", "ZONE=IP[:PORT],...;...",
            "DNS servers for the names below others; the longest match counts", "none";
        validate: fixed Switch, "dns-validate", "MESONET_DNS_VALIDATE", "on|off",
            "Whether signatures of what the servers of 'forward' say are checked (DNSSEC): on or off", "off";
        cache: fixed usize, "dns-cache", "MESONET_DNS_CACHE", "N",
            "How many answers of other DNS servers are kept", "20000";
        serve_stale: fixed Grace, "dns-serve-stale", "MESONET_DNS_SERVE_STALE", "TIME",
            "How long answers of other DNS servers are used after their time when there is no new one", "1440m";
        tls: optional SocketAddr, "dns-tls", "MESONET_DNS_TLS", "ADDR",
            "Address of DNS over TLS, such as 127.0.0.1:853", "not served";
        https: optional SocketAddr, "dns-https", "MESONET_DNS_HTTPS", "ADDR",
            "Address of DNS over HTTPS, at /dns-query", "not served";
        quic: optional SocketAddr, "dns-quic", "MESONET_DNS_QUIC", "ADDR",
            "Address of DNS over QUIC, such as 127.0.0.1:853", "not served";
        certificate: optional PathBuf, "dns-certificate", "MESONET_DNS_CERTIFICATE", "FILE",
            "Certificates for DNS over TLS, HTTPS and QUIC (PEM)", "the node's, if it has joined a cluster";
        key: optional PathBuf, "dns-key", "MESONET_DNS_KEY", "FILE",
            "Key of that certificate (PEM)", "the node's, if it has joined a cluster";
        allow: optional Networks, "dns-allow", "MESONET_DNS_ALLOW", "NETWORK,...",
            "Clients that are answered", "all";
        forward_allow: optional Networks, "dns-forward-allow", "MESONET_DNS_FORWARD_ALLOW", "NETWORK,...",
            "Clients for whom names outside the zones are asked", "those of loopback and private networks";
        transfer_allow: optional Networks, "dns-transfer-allow", "MESONET_DNS_TRANSFER_ALLOW", "NETWORK,...",
            "Clients that may transfer whole zones (AXFR)", "none";
        views: optional Views, "dns-views", "MESONET_DNS_VIEWS", "NETWORK,...=ZONE,...;...",
            "Clients that see some zones only", "all see all";
        rate_limit: optional u32, "dns-rate-limit", "MESONET_DNS_RATE_LIMIT", "N",
            "Answers of a kind per second over UDP to a network of clients (/24, /56)", "any number";
        queries_max: fixed usize, "dns-queries-max", "MESONET_DNS_QUERIES_MAX", "N",
            "How many queries may wait for other DNS servers at a time", "4096";
        overload: fixed OnOverload, "dns-overload", "MESONET_DNS_OVERLOAD", "refuse|drop",
            "What becomes of those beyond that: refuse or drop", "refuse";
        search_collapse: optional SearchDomains, "dns-search-collapse", "MESONET_DNS_SEARCH_COLLAPSE", "DOMAIN,...",
            "The clients' search list, to answer what is only asked because of it at once", "off";
        identity: optional String, "dns-id", "MESONET_DNS_ID", "TEXT",
            "The server's name for who asks (id.server, NSID)", "it is not told";
    }
}

settings! {
    /// Which names are served.
    ZoneSettings => ZoneOptions {
        domain: fixed String, "dns-domain", "MESONET_DNS_DOMAIN", "DOMAIN",
            "The zone of mesos-dns' names", "mesos";
        ttl: fixed u32, "dns-ttl", "MESONET_DNS_TTL", "SECONDS",
            "How long clients may keep records", "5";
        ip_sources: fixed IpSources, "dns-ip-sources", "MESONET_DNS_IP_SOURCES", "NAMES",
            "Where tasks' addresses come from, the first that has one: host, netinfo, mesos, docker",
            "netinfo,mesos,host";
        tasks: optional NamedTasks, "dns-tasks", "MESONET_DNS_TASKS", "best|running",
            "Names lead to the best tasks (ready, not about to end) or to all that run, as with mesos-dns",
            "best, and running with a Mesos cluster";
        records: optional PathBuf, "dns-records", "MESONET_DNS_RECORDS", "FILE",
            "Records of your own, one on a line: NAME [TTL] TYPE VALUE", "none";
        node_address: optional IpAddr, "dns-node-address", "MESONET_DNS_NODE_ADDRESS", "IP",
            "What thisnode.thisdcos.directory leads to", "that name does not exist";
        cluster_key: optional String, "dns-cluster-key", "MESONET_DNS_CLUSTER_KEY", "KEY",
            "Names of thisdcos.directory are served below KEY.dcos.directory, too", "they are not";
    }
}

settings! {
    /// A local cluster: master, agent and network daemon in one process.
    DevSettings => DevOptions {
        dir: optional PathBuf, "dir", "MESONET_DIR", "DIR",
            "Where state and sandboxes are kept", "a temporary directory";
        http: fixed SocketAddr, "http", "MESONET_HTTP", "ADDR",
            "Address of the API", "127.0.0.1:8080";
        dns: fixed SocketAddr, "dns", "MESONET_DNS", "ADDR",
            "Address of the DNS server, UDP and TCP", "127.0.0.1:8053";
        dns_http: fixed Listen, "dns-http", "MESONET_DNS_HTTP", "ADDR|off",
            "Address of mesos-dns' HTTP API, such as 127.0.0.1:8123", "off";
        datapath: fixed Datapath, "datapath", "MESONET_DATAPATH", "NAME",
            "What balances VIPs: proxy, ebpf, auto or none", "proxy";
        overlay: fixed Switch, "overlay", "MESONET_OVERLAY", "on|off",
            "The encrypted network between containers: on or off", "off";
        vip_range: fixed VipRange, "vip-range", "MESONET_VIP_RANGE", "RANGE",
            "Addresses of named VIPs", "127.11.0.0/16";
        cpus: optional Amount, "cpus", "MESONET_CPUS", "N",
            "Cores to offer", "all";
        mem: optional Amount, "mem", "MESONET_MEM", "MIB",
            "Memory to offer, in MiB", "all but a share for the system";
        disk: optional Amount, "disk", "MESONET_DISK", "MIB",
            "Disk space to offer, in MiB", "what is free but a share for the system";
        host_ports: fixed PortSpan, "host-ports", "MESONET_HOST_PORTS", "FIRST-LAST",
            "Host ports to offer", "31000-32000";
        container_dns: fixed IpAddr, "container-dns", "MESONET_CONTAINER_DNS", "IP",
            "Name server, at port 53, of tasks with addresses of their own", "198.51.100.1";
        service_ports: fixed PortSpan, "service-ports", "MESONET_SERVICE_PORTS", "FIRST-LAST",
            "Ports that Marathon gives to services", "10000-20000";
        drain_grace: fixed Grace, "drain-grace", "MESONET_DRAIN_GRACE", "TIME",
            "The longest wait for open connections before a task is killed", "10s";
        log: fixed String, "log", "MESONET_LOG", "FILTER",
            "What is logged, such as info,mesonet_agent=debug", "info";
        log_format: fixed LogFormat, "log-format", "MESONET_LOG_FORMAT", "FORM",
            "The form of log lines: text or json", "text";
    }
    names: DnsSettings => DnsOptions;
    zone: ZoneSettings => ZoneOptions;
    sockets: SocketSettings => SocketOptions;
}

settings! {
    /// A master of a cluster of many nodes.
    MasterSettings => MasterOptions {
        dir: fixed PathBuf, "dir", "MESONET_DIR", "DIR",
            "Where the cluster's authority and state are, made by mesonet init", "/var/lib/mesonet/master";
        listen: fixed SocketAddr, "listen", "MESONET_LISTEN", "ADDR",
            "Address at which nodes connect, UDP", "0.0.0.0:7070";
        http: fixed SocketAddr, "http", "MESONET_HTTP", "ADDR",
            "Address of the API, which asks nobody who they are", "127.0.0.1:8080";
        address: optional IpAddr, "address", "MESONET_ADDRESS", "IP",
            "Address at which others reach this master, also in the names of the cluster",
            "the one that the API listens on";
        name: optional NodeName, "name", "MESONET_NAME", "NAME",
            "The master's name among several", "the host's name";
        store: fixed StoreKind, "store", "MESONET_STORE", "KIND",
            "Where the state is: redb, in the directory; or etcd, for several masters of which one leads", "redb";
        etcd: optional Endpoints, "etcd", "MESONET_ETCD", "URL,…",
            "Where etcd is reached, such as http://10.0.0.1:2379, separated by commas", "http://127.0.0.1:2379";
        etcd_ca: optional PathBuf, "etcd-ca", "MESONET_ETCD_CA", "FILE",
            "Certificates (PEM) by which etcd is known, for https", "https cannot be used";
        etcd_cert: optional PathBuf, "etcd-cert", "MESONET_ETCD_CERT", "FILE",
            "This master's certificate (PEM) for etcd", "it has none to show";
        etcd_key: optional PathBuf, "etcd-key", "MESONET_ETCD_KEY", "FILE",
            "The key (PEM) of that certificate", "it has none to show";
        node_timeout: fixed Grace, "node-timeout", "MESONET_NODE_TIMEOUT", "TIME",
            "A node that is silent for so long is taken to be disconnected", "5s";
        unreachable_after: fixed Grace, "unreachable-after", "MESONET_UNREACHABLE_AFTER", "TIME",
            "So long after that, the tasks of an agent may be replaced", "5s";
        removed_after: fixed Grace, "removed-after", "MESONET_REMOVED_AFTER", "TIME",
            "So long after that, an agent is removed with its tasks", "24h";
        removal_share: fixed Percent, "removal-share", "MESONET_REMOVAL_SHARE", "PERCENT",
            "The greatest share of the agents that is given up when they are lost at about the same time", "50%";
        removal_window: fixed Grace, "removal-window", "MESONET_REMOVAL_WINDOW", "TIME",
            "Agents that are lost within so long are lost at about the same time", "60s";
        vip_range: fixed VipRange, "vip-range", "MESONET_VIP_RANGE", "RANGE",
            "Addresses of named VIPs", "127.11.0.0/16";
        service_ports: fixed PortSpan, "service-ports", "MESONET_SERVICE_PORTS", "FIRST-LAST",
            "Ports that Marathon gives to services", "10000-20000";
        drain_grace: fixed Grace, "drain-grace", "MESONET_DRAIN_GRACE", "TIME",
            "The longest wait for open connections before a task is killed", "10s";
        log: fixed String, "log", "MESONET_LOG", "FILTER",
            "What is logged, such as info,mesonet_bus=debug", "info";
        log_format: fixed LogFormat, "log-format", "MESONET_LOG_FORMAT", "FORM",
            "The form of log lines: text or json", "text";
    }
}

settings! {
    /// The agent of a node: runs its tasks.
    AgentSettings => AgentOptions {
        dir: fixed PathBuf, "dir", "MESONET_DIR", "DIR",
            "Where the node's identity, the tasks' state and the sandboxes are", "/var/lib/mesonet/node";
        master: needed Masters, "master", "MESONET_MASTER", "HOST:PORT",
            "Where masters are reached (UDP), separated by commas", "10.0.0.1:7070";
        node: optional NodeName, "node", "MESONET_NODE", "NAME",
            "The node's name, when it joins", "the host's name";
        address: optional IpAddr, "address", "MESONET_ADDRESS", "IP",
            "Address at which the tasks' host ports are reached", "the one that leads to the master";
        hostname: optional String, "hostname", "MESONET_HOSTNAME", "NAME",
            "Name of the host that clients are told; must resolve for them", "the address";
        zone: optional String, "zone", "MESONET_ZONE", "NAME",
            "The zone that the node is in: nodes of one zone are near each other", "none";
        cpus: optional Amount, "cpus", "MESONET_CPUS", "N",
            "Cores to offer", "all";
        mem: optional Amount, "mem", "MESONET_MEM", "MIB",
            "Memory to offer, in MiB", "all but a share for the system";
        disk: optional Amount, "disk", "MESONET_DISK", "MIB",
            "Disk space to offer, in MiB", "what is free but a share for the system";
        host_ports: fixed PortSpan, "host-ports", "MESONET_HOST_PORTS", "FIRST-LAST",
            "Host ports to offer", "31000-32000";
        container_dns: fixed IpAddr, "container-dns", "MESONET_CONTAINER_DNS", "IP",
            "Name server, at port 53, of tasks with addresses of their own", "198.51.100.1";
        http: fixed Listen, "http", "MESONET_HTTP", "ADDR|off",
            "Address of the metrics", "127.0.0.1:8082";
        master_timeout: fixed Grace, "master-timeout", "MESONET_MASTER_TIMEOUT", "TIME",
            "A master that is silent for so long is taken to be lost", "5s";
        log: fixed String, "log", "MESONET_LOG", "FILTER",
            "What is logged, such as info,mesonet_agent=debug", "info";
        log_format: fixed LogFormat, "log-format", "MESONET_LOG_FORMAT", "FORM",
            "The form of log lines: text or json", "text";
    }
}

settings! {
    /// The network daemon of a node: serves names and virtual addresses.
    NetSettings => NetOptions {
        dir: fixed PathBuf, "dir", "MESONET_DIR", "DIR",
            "Where the node's identity and the last view are; the agent's directory", "/var/lib/mesonet/node";
        master: needed Masters, "master", "MESONET_MASTER", "HOST:PORT",
            "Where masters are reached (UDP), separated by commas", "10.0.0.1:7070";
        source: optional Source, "source", "MESONET_SOURCE", "URL",
            "Another source of the view: mesos://HOST:5050, mesos-state://HOST:5050 or file:PATH", "the masters";
        mesos_dns_config: optional PathBuf, "mesos-dns-config", "MESONET_MESOS_DNS_CONFIG", "FILE",
            "config.json of mesos-dns, for what is not said otherwise", "none";
        refresh: fixed Grace, "refresh", "MESONET_REFRESH", "TIME",
            "How often mesos-state:// asks", "60s";
        source_timeout: fixed Grace, "source-timeout", "MESONET_SOURCE_TIMEOUT", "TIME",
            "How long a Mesos master may take to send its state", "5m";
        mesos_credentials: optional PathBuf, "mesos-credentials", "MESONET_MESOS_CREDENTIALS", "FILE",
            "JSON with principal and secret for Mesos masters", "none are sent";
        mesos_token_file: optional PathBuf, "mesos-token-file", "MESONET_MESOS_TOKEN_FILE", "FILE",
            "A token of DC/OS for Mesos masters", "none is sent";
        node: optional NodeName, "node", "MESONET_NODE", "NAME",
            "The node's name, when it joins", "the host's name";
        dns: fixed SocketAddr, "dns", "MESONET_DNS", "ADDR",
            "Address of the DNS server, UDP and TCP", "127.0.0.1:8053";
        dns_address: optional IpAddr, "dns-address", "MESONET_DNS_ADDRESS", "IP",
            "Put on lo, and serves names at port 53 as well; 198.51.100.1 as in DC/OS", "none";
        dns_http: fixed Listen, "dns-http", "MESONET_DNS_HTTP", "ADDR|off",
            "Address of mesos-dns' HTTP API, which asks nobody who they are", "127.0.0.1:8123";
        dns_enumeration: fixed Switch, "dns-enumeration", "MESONET_DNS_ENUMERATION", "on|off",
            "Whether that API lists all records: on or off", "on";
        resolv_conf: optional PathBuf, "resolv-conf", "MESONET_RESOLV_CONF", "FILE",
            "Put this server first in it, and put it back at the end; /etc/resolv.conf", "none";
        resolved_drop_in: optional PathBuf, "resolved-drop-in", "MESONET_RESOLVED_DROP_IN", "FILE",
            "Drop-in for systemd-resolved, such as /etc/systemd/resolved.conf.d/mesonet.conf", "none";
        datapath: optional Datapath, "datapath", "MESONET_DATAPATH", "NAME",
            "What balances VIPs: proxy, ebpf, auto or none", "proxy, and none with another source";
        overlay: fixed Switch, "overlay", "MESONET_OVERLAY", "on|off",
            "The encrypted network between containers: on or off", "off";
        overlay_port: fixed u16, "overlay-port", "MESONET_OVERLAY_PORT", "PORT",
            "UDP port of the overlay's tunnels", "51820";
        overlay_key_age: fixed Grace, "overlay-key-age", "MESONET_OVERLAY_KEY_AGE", "TIME",
            "Age at which the key of the node's tunnels is changed", "24h";
        overlay_masquerade: fixed Switch, "overlay-masquerade", "MESONET_OVERLAY_MASQUERADE", "on|off",
            "Whether packets from the node's containers to addresses outside of all networks leave with the node's own address",
            "off";
        http: fixed SocketAddr, "http", "MESONET_HTTP", "ADDR",
            "Address of the metrics", "127.0.0.1:8081";
        stale_after: fixed Grace, "stale-after", "MESONET_STALE_AFTER", "TIME",
            "Answers are marked stale when no master was heard for so long", "30s";
        master_timeout: fixed Grace, "master-timeout", "MESONET_MASTER_TIMEOUT", "TIME",
            "A master that is silent for so long is taken to be lost", "5s";
        log: fixed String, "log", "MESONET_LOG", "FILTER",
            "What is logged, such as info,mesonet_bus=debug", "info";
        log_format: fixed LogFormat, "log-format", "MESONET_LOG_FORMAT", "FORM",
            "The form of log lines: text or json", "text";
    }
    names: DnsSettings => DnsOptions;
    zone: ZoneSettings => ZoneOptions;
    sockets: SocketSettings => SocketOptions;
}

#[cfg(test)]
mod tests {
    use super::file;
    use super::*;

    #[test]
    fn what_is_given_wins_over_the_file_and_the_file_over_defaults() {
        let given = DevSettings { cpus: "2".parse().ok(), ..DevSettings::default() };
        let file = DevSettings { cpus: "8".parse().ok(), mem: "512".parse().ok(), ..DevSettings::default() };
        let options = given.or(file).with_defaults();
        assert_eq!(options.cpus, "2".parse().ok());
        assert_eq!(options.mem, "512".parse().ok());
        assert_eq!(options.http, "127.0.0.1:8080".parse().expect("address"));
    }

    #[test]
    fn the_file_for_one_of_several_masters_is_whole() {
        let text = include_str!("../deploy/config/master-etcd.toml");
        let options = file::parse::<MasterSettings>(text).expect(text).with_defaults();
        assert_eq!(options.store, StoreKind::Etcd);
        assert_eq!(options.etcd.map(|Endpoints(members)| members.len()), Some(3));
        assert_eq!(options.address, Some(options.http.ip()), "other masters reach the API");
    }

    /// Also: every default is a value of its setting, and every text is whole.
    #[track_caller]
    fn documented_is_the_default<S: Settings<Options: PartialEq + std::fmt::Debug>>() {
        let text = S::documented();
        let read: S = file::parse(&text).expect(&text);
        assert_eq!(read.with_defaults(), S::default().with_defaults(), "{text}");
        for setting in S::texts() {
            assert!(text.contains(&format!("{} = ", setting.key)), "{text}");
        }
    }

    #[test]
    fn the_documented_file_says_what_is_so_without_it() {
        documented_is_the_default::<DevSettings>();
        documented_is_the_default::<MasterSettings>();
        documented_is_the_default::<AgentSettings>();
        documented_is_the_default::<NetSettings>();
    }
}
