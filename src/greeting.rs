//! What `mesonet dev` tells the person who started it.

use std::fmt;

use mesonet_model::Resources;

use crate::compose::LocalCluster;
use crate::config::{Datapath, DevOptions};

/// The addresses, what to try, and how it ends.
pub struct Greeting<'cluster> {
    /// What runs.
    pub cluster: &'cluster LocalCluster,
    /// As it was started.
    pub options: &'cluster DevOptions,
    /// Whether it is read on a terminal that shows colours.
    pub coloured: bool,
}

impl Greeting<'_> {
    fn heading(&self, text: &str) -> String {
        if self.coloured { format!("\x1b[1;36m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn command(&self, text: &str) -> String {
        if self.coloured { format!("\x1b[32m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn vips(&self) -> String {
        match self.options.datapath {
            Datapath::None if self.options.sockets.packet_interface.is_some() => {
                format!("{}, for packets alone (--datapath none)", self.options.vip_range)
            }
            Datapath::None => "named, but not balanced (--datapath none)".to_owned(),
            Datapath::Proxy => format!("{}, by proxy", self.options.vip_range),
            Datapath::Ebpf => format!("{}, by the kernel", self.options.vip_range),
            Datapath::Auto => {
                format!("{}, {} says how", self.options.vip_range, self.command("mesonet route list"))
            }
        }
    }

    fn state(&self) -> String {
        let dir = self.cluster.dir().path().display();
        if self.cluster.dir().is_kept() { dir.to_string() } else { format!("{dir}, removed at the end") }
    }

    fn end(&self) -> String {
        if self.cluster.dir().is_kept() {
            let again = format!("mesonet dev --dir {}", self.cluster.dir().path().display());
            format!(
                "Ctrl-C ends this process; tasks run on, and {} takes them up again.",
                self.command(&again)
            )
        } else {
            "Ctrl-C ends this process and its tasks.".to_owned()
        }
    }
}

impl fmt::Display for Greeting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let api = self.cluster.http();
        let dns = self.cluster.dns();
        let Resources { cpus, mem, ports, .. } = self.cluster.resources();
        writeln!(f, "{}", self.heading("mesonet is up: a cluster of one node"))?;
        writeln!(f, "  API     http://{api}")?;
        writeln!(f, "  DNS     {dns}, UDP and TCP")?;
        if let Some(dns_http) = self.cluster.dns_http() {
            writeln!(f, "  DNS API http://{dns_http}/v1/records")?;
        }
        writeln!(f, "  VIPs    {}", self.vips())?;
        writeln!(f, "  offers  {cpus} cpus, {mem} MiB memory, host ports {ports}")?;
        writeln!(f, "  state   {}", self.state())?;
        writeln!(f, "{}", self.heading("Try in another terminal"))?;
        let post = format!("curl -X POST http://{api}/v2/apps -d @deploy/examples/web.json");
        let dig = format!("dig @{} -p {} web.marathon.mesos +short", dns.ip(), dns.port());
        for command in [post.as_str(), dig.as_str(), "mesonet app list", "mesonet service list"] {
            writeln!(f, "  {}", self.command(command))?;
        }
        writeln!(f, "{}", self.end())
    }
}
