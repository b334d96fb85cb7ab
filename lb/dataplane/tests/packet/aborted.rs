//! A process ends in the midst of the replacement of another version's programs: whatever comes next goes on with what is left.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::MapData;
use mesonet_lb_dataplane::{PacketBalancer, PacketMode, PacketSettings};
use mesonet_lb_plan::RouteState::Ready;

use crate::site::{Balancer, Side, Site, Wanted, address};
use crate::traffic::{Conversation, WAYS, on, serve};
use crate::upgrade::make_older;

const SERVICES: [Wanted<'static>; 1] = [("tcp/web@marathon:80", "11.0.0.1:80", &[("10.2.0.2:8001", Ready)])];

fn begin(site: &Site) -> Conversation {
    on(site, Side::Client, || Conversation::begin(address("11.0.0.1:80")).expect("a connection"))
}

/// A process that has put services into effect and has ended, and a connection.
fn serve_and_end(site: &Site, settings: &PacketSettings) -> Conversation {
    let mut node = Balancer::start(settings);
    node.put_together(&SERVICES);
    begin(site)
}

#[test]
#[ignore = "needs root"]
fn a_version_that_comes_back_before_another_has_taken_over_goes_on() {
    for (mode, masquerade) in WAYS {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let mut settings = site.settings(&["clients", "servers"], mode);
        settings.masquerade = masquerade;
        let mut old = serve_and_end(&site, &settings);
        let (mine, other) = (site.pins(), make_older(&site, false));
        drop(Balancer::start(&settings));
        begin(&site);

        // The other version ends before it knows of services, and the first one is started again.
        fs::rename(&mine, mine.with_file_name("packet-9")).expect("a BPF file system takes it");
        fs::rename(&other, &mine).expect("a BPF file system takes it");
        let mut node = Balancer::start(&settings);
        assert!(old.echoes(1000), "{mode:?} {masquerade}");
        let mut new = begin(&site);
        node.put_together(&SERVICES);
        assert!(old.echoes(1000) && new.echoes(1000), "{mode:?} {masquerade}");
        begin(&site);
        assert_eq!(site.pins(), mine, "nothing of the other version is left");
    }
}

#[test]
#[ignore = "needs root"]
fn new_connections_are_not_left_to_programs_that_have_ended() {
    for mode in [PacketMode::Tc, PacketMode::XdpGeneric] {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let settings = site.settings(&["clients", "servers"], mode);
        let mut old = serve_and_end(&site, &settings);
        let older = site.pins().with_file_name("packet-0");
        // The process before has ended after the older programs, and before it has removed what they knew.
        fs::create_dir(&older).expect("a BPF file system takes it");
        for name in ["MEMBERS", "ENDPOINTS", "FLOWS"] {
            let map = MapData::from_pin(site_pins(&older).join(name)).expect("it is pinned");
            map.pin(older.join(name)).expect("a second name");
        }
        let mut node = Balancer::start(&settings);
        let mut new = begin(&site);
        node.put_together(&SERVICES);
        assert!(old.echoes(1000) && new.echoes(1000), "{mode:?}");
        assert!(!older.exists());
    }
}

/// Where the programs are pinned that have no older ones' directory.
fn site_pins(older: &Path) -> PathBuf {
    let all = fs::read_dir(older.parent().expect("a layout")).expect("a directory").flatten();
    all.map(|entry| entry.path()).find(|path| path != older).expect("another directory")
}

#[test]
#[ignore = "needs root"]
fn what_a_process_needs_of_another_version_is_not_taken_away() {
    let site = Site::new();
    serve(&site, "10.2.0.2:8001", 'a');
    let settings = site.settings(&["clients", "servers"], PacketMode::Tc);
    let mut old = serve_and_end(&site, &settings);
    make_older(&site, true);
    let node = Balancer::start(&settings);
    PacketBalancer::remove_unused(&settings.bpffs).expect("nothing fails");
    assert!(old.echoes(1000));
    begin(&site);
    // Nobody runs any more.
    drop(node);
    PacketBalancer::remove_unused(&settings.bpffs).expect("nothing fails");
    let is_reached = on(&site, Side::Client, || {
        TcpStream::connect_timeout(&address("11.0.0.1:80"), Duration::from_millis(300)).is_ok()
    });
    assert!(!is_reached);
}
