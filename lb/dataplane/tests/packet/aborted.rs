//! A process ends in the midst of the replacement of another version's programs: whatever comes next goes on with what is left.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use aya::EbpfLoader;
use aya::maps::MapData;
use mesonet_lb_dataplane::{PacketBalancer, PacketMode, PacketSettings};
use mesonet_lb_plan::RouteState::Ready;

use crate::site::{Balancer, Side, Site, Wanted, address};
use crate::traffic::{Conversation, WAYS, on, remove_unused, serve};
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
    remove_unused(&settings.bpffs);
    let is_reached = on(&site, Side::Client, || {
        TcpStream::connect_timeout(&address("11.0.0.1:80"), Duration::from_millis(300)).is_ok()
    });
    assert!(!is_reached);
}

/// Puts a map of flows there that never forgets any, as another version may have, and is otherwise of the same form.
fn pin_other_flows(pins: &Path) {
    const LRU_HASH: u32 = 9;
    const HASH: u32 = 1;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ebpf/object/packet.o");
    let mut object = fs::read(path).expect("the programs");
    let form = |kind: u32| [kind, 40, 84, 262_144].map(u32::to_le_bytes).concat();
    let at = object.windows(16).position(|words| words == form(LRU_HASH)).expect("the map of flows");
    object[at..at + 16].copy_from_slice(&form(HASH));
    let path = pins.join("FLOWS");
    fs::remove_file(&path).expect("it is there");
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("FLOWS", 1_000).map_pin_path("FLOWS", &path);
    loader.load(&object).expect("the kernel makes the maps");
}

#[test]
#[ignore = "needs root"]
fn flows_of_another_kind_of_map_are_replaced_with_their_programs() {
    let site = Site::new();
    serve(&site, "10.2.0.2:8001", 'a');
    let settings = site.settings(&["clients", "servers"], PacketMode::Tc);
    let mut old = serve_and_end(&site, &settings);
    let older = make_older(&site, false);
    pin_other_flows(&older);
    let mut node = Balancer::start(&settings);
    assert!(old.echoes(1000), "the older programs go on");
    node.put_together(&SERVICES);
    assert!(old.echoes(1000) && begin(&site).echoes(1000) && !older.exists());
}

/// Tells the process that is to be killed where the BPF file system is.
const OF_CHILD: &str = "MESONET_TEST_REPLACE_IN";

/// Moments at which a process is killed: what there is of its own directory and of that of the older programs.
const MOMENTS: [fn(&Path, &Path) -> bool; 5] = [
    |mine, _| mine.join("FLOWS").exists(),
    |mine, _| links(mine) > 0,
    |mine, _| links(mine) == 6,
    |_, older| !older.join("SERVICES").exists(),
    |_, older| links(older) == 0,
];

/// How many programs are pinned there.
fn links(pins: &Path) -> usize {
    let names = fs::read_dir(pins).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("mesonet_")).count()
}

#[test]
#[ignore = "needs root"]
fn a_process_that_is_killed_leaves_what_the_next_one_goes_on_with() {
    if let Ok(bpffs) = std::env::var(OF_CHILD) {
        Balancer::start(&killed_settings(bpffs.into())).put_together(&SERVICES);
        return;
    }
    for (number, is_moment) in MOMENTS.iter().enumerate() {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let settings = killed_settings(site.settings(&[], PacketMode::Tc).bpffs);
        let mut flows = vec![serve_and_end(&site, &settings)];
        flows.extend((0..5).map(|_| begin(&site)));
        let (mine, older) = (site.pins(), make_older(&site, false));
        let mut child = replace_in(&settings.bpffs);
        // If it is faster, it has done everything, which is as good.
        while !is_moment(&mine, &older) && child.try_wait().expect("a child").is_none() {
            thread::yield_now();
        }
        child.kill().expect("a child");
        child.wait().expect("a child");
        let mut go_on = |what: &str| {
            assert!(flows.iter_mut().all(|flow| flow.echoes(100)), "{number}: {what}");
            flows.push(begin(&site));
        };
        go_on("nobody runs");
        let mut node = Balancer::start(&settings);
        go_on("the next one has no services yet");
        node.put_together(&SERVICES);
        go_on("the next one has taken over");
        assert_eq!(site.pins(), mine, "{number}: nothing of the older programs is left");
    }
}

fn killed_settings(bpffs: PathBuf) -> PacketSettings {
    let interfaces = ["clients", "servers"].map(str::to_owned).to_vec();
    PacketSettings { interfaces, mode: PacketMode::XdpGeneric, masquerade: true, bpffs }
}

/// Has another process replace the programs there: this test, told so.
fn replace_in(bpffs: &Path) -> Child {
    let name = "aborted::a_process_that_is_killed_leaves_what_the_next_one_goes_on_with";
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", name, "--include-ignored", "--test-threads", "1"]).env(OF_CHILD, bpffs);
    command.stdout(Stdio::null()).spawn().expect("it starts")
}
