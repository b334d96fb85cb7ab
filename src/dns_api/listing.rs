//! All records, in the forms that clients know.

use std::io::{self, Write};

use mesonet_dns_zone::{Data, Name, Record, Zone};
use mesonet_model::ClusterView;
use serde_json::{Value, json};

use super::{ApiSettings, start_of};

/// `[{"name", "host", "rtype"}]`, the form of dcos-net, one record per line.
pub fn records(zone: &Zone, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"[")?;
    let mut separator = "\n";
    for entry in zone.zone_file().filter_map(|record| entry(&record)) {
        write!(out, "{separator}{entry}")?;
        separator = ",\n";
    }
    out.write_all(b"\n]\n")
}

/// The mesos-dns zone as mesos-dns shows it; dcos-net copies it from there.
pub fn transfer(zone: &Zone, settings: &ApiSettings, out: &mut dyn Write) -> io::Result<()> {
    let apex = Name::root().below(&settings.domain).unwrap_or_else(|_| Name::root());
    let soa = start_of(zone, &settings.domain);
    let soa = soa.as_deref();
    let head = json!({
        "TTL": settings.ttl,
        "Serial": soa.map(|soa| soa.serial),
        "RefreshSeconds": settings.refresh.as_secs(),
        "Mname": soa.map(|soa| soa.primary.to_string()),
        "Rname": soa.map(|soa| soa.mailbox.to_string()),
        "Domain": settings.domain,
    });
    let head = head.to_string();
    write!(out, "{},\"Records\":{{", head.trim_end_matches('}'))?;
    let mut separator = "";
    for (key, kind) in [("As", "A"), ("AAAAs", "AAAA"), ("SRVs", "SRV")] {
        write!(out, "{separator}\"{key}\":")?;
        by_name(zone, &apex, kind, out)?;
        separator = ",";
    }
    out.write_all(b"}}\n")
}

/// `{name: [host]}` of one type in one zone.
fn by_name(zone: &Zone, apex: &Name, kind: &str, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"{")?;
    let mut last: Option<Name> = None;
    for record in zone.transfer(apex).into_iter().flatten() {
        let Some((host, _)) = host_and_kind(&record.data).filter(|(_, found)| *found == kind) else {
            continue;
        };
        if last.as_ref() == Some(&record.owner) {
            write!(out, ",{}", json!(host))?;
        } else {
            let separator = if last.is_some() { "]," } else { "" };
            write!(out, "{separator}{}:[{}", json!(record.owner.to_string()), json!(host))?;
            last = Some(record.owner);
        }
    }
    out.write_all(if last.is_some() { b"]}" } else { b"}" })
}

/// Every record in zone-file form (RFC 1035 §5), sorted.
pub fn zone_file(zone: &Zone, out: &mut dyn Write) -> io::Result<()> {
    zone.zone_file().try_for_each(|record| writeln!(out, "{record}"))
}

/// `{"frameworks": [{"name", "tasks": [{"name", "id", "records": […]}]}]}`, the form of mesos-dns.
pub fn enumerate(zone: &Zone, view: &ClusterView, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"{\"frameworks\":[")?;
    for (number, framework) in zone.frameworks(view).enumerate() {
        let separator = if number == 0 { "\n" } else { ",\n" };
        write!(out, "{separator}{{\"name\":{},\"tasks\":[", json!(framework.name))?;
        for (number, task) in framework.tasks.iter().enumerate() {
            let separator = if number == 0 { "\n" } else { ",\n" };
            let records: Vec<Value> = task.records.iter().filter_map(entry).collect();
            write!(out, "{separator}{}", json!({ "name": task.name, "id": task.id, "records": records }))?;
        }
        out.write_all(b"]}")?;
    }
    out.write_all(b"]}\n")
}

/// A record as an object. Only addresses and ports have the form of a host.
fn entry(record: &Record) -> Option<Value> {
    let (host, kind) = host_and_kind(&record.data)?;
    Some(json!({ "name": record.owner.to_string(), "host": host, "rtype": kind }))
}

/// What a client connects to, with the port if there is one, and the type's name.
fn host_and_kind(data: &Data) -> Option<(String, &'static str)> {
    match data {
        Data::A(address) => Some((address.to_string(), "A")),
        Data::Aaaa(address) => Some((address.to_string(), "AAAA")),
        Data::Srv { target, port, .. } => Some((format!("{target}:{port}"), "SRV")),
        _ => None,
    }
}
