//! A process of another version takes over, whose maps have another form.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapInfo};
use mesonet_ebpf_abi::PACKET_ENDPOINTS_MAX;
use mesonet_lb_dataplane::{PacketAnswer, PacketMode, PacketQuestion};
use mesonet_lb_plan::RouteState::{Draining, Ready};
use mesonet_model::Protocol;

use crate::site::{Balancer, Side, Site, Wanted, address};
use crate::traffic::{Conversation, WAYS, on, serve};

/// Nothing here takes long; a test that waits for this has failed.
const PATIENCE: Duration = Duration::from_secs(120);

const WEB: (&str, &str) = ("tcp/web@marathon:80", "11.0.0.1:80");
const NEWS: (&str, &str) = ("tcp/news@marathon:80", "11.0.0.2:80");

/// The number of the form of the maps that outlive a process, and that form: octets of keys and values, and entries.
const FORM: (&str, [(&str, u32, u32, u32); 11]) = (
    "packet-5",
    [
        ("COUNTS", 4, 48, 65_536),
        ("DEVICES", 4, 8, 256),
        ("ENDPOINTS", 4, 48, 65_536),
        ("EVENTS", 4, 8, 8),
        ("FLOWS", 40, 84, 262_144),
        ("MEMBERS", 24, 4, 65_536),
        ("NODES", 16, 4, 32_768),
        ("PROGRAMS", 4, 4, 8),
        ("SCRATCH", 4, 256, 1),
        ("SERVICES", 24, 20, 131_072),
        ("TABLE", 4, 64, 262_144),
    ],
);

/// Makes what a process has left look like that of another version.
pub fn make_older(site: &Site, is_of_other_layout: bool) -> PathBuf {
    let pins = site.pins();
    let older = if is_of_other_layout {
        let layout = pins.parent().expect("a layout").with_file_name("v0");
        fs::create_dir(&layout).expect("a BPF file system takes it");
        layout.join("packet-0")
    } else {
        pins.with_file_name("packet-0")
    };
    fs::rename(&pins, &older).expect("a BPF file system takes it");
    older
}

/// A client that begins one connection after the other, and tells what became of each.
struct Load(Receiver<Result<(), String>>);

impl Load {
    fn start(site: &Site) -> Self {
        let (results, load) = mpsc::channel();
        let entry = site.entry(Side::Client);
        thread::spawn(move || {
            entry.enter();
            while results.send(converse()).is_ok() {}
        });
        Self(load)
    }

    /// Waits for some more connections. No one has failed before.
    #[track_caller]
    fn goes_on(&self) {
        self.0.try_iter().for_each(|result| assert_eq!(result, Ok(())));
        for _ in 0..10 {
            let result = self.0.recv_timeout(PATIENCE).expect("connections are made");
            assert_eq!(result, Ok(()));
        }
    }
}

fn converse() -> Result<(), String> {
    let begun = Conversation::begin(address(WEB.1));
    let mut conversation = begun.map_err(|error| format!("a new connection: {error}"))?;
    let is_whole = conversation.echoes(100) && conversation.echoes(5000);
    if is_whole { Ok(()) } else { Err("a connection has ended".to_owned()) }
}

#[test]
#[ignore = "needs root"]
fn another_form_of_maps_has_another_number() {
    let site = Site::new();
    let node = Balancer::start(&site.settings(&["clients"], PacketMode::Tc));
    let pins = site.pins();
    let form = FORM.1.map(|(name, ..)| {
        let map = MapInfo::from_pin(pins.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, map.key_size(), map.value_size(), map.max_entries())
    });
    let number = pins.file_name().and_then(|name| name.to_str()).expect("a name");
    assert_eq!((number, form), FORM, "a process of another version would take these maps for its own");
    drop(node);
}

#[test]
#[ignore = "needs root"]
fn programs_of_another_form_are_replaced_without_a_gap() {
    for (mode, masquerade) in WAYS {
        let site = Site::new();
        serve(&site, "10.2.0.2:8001", 'a');
        let listener = on(&site, Side::Server, || TcpListener::bind("10.2.0.2:8002").expect("bind"));
        let mut settings = site.settings(&["clients", "servers"], mode);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        node.put_together(&[
            (WEB.0, WEB.1, &[("10.2.0.2:8001", Ready)]),
            (NEWS.0, NEWS.1, &[("10.2.0.2:8002", Ready)]),
        ]);
        let mut reader =
            on(&site, Side::Client, || TcpStream::connect(address(NEWS.1)).expect("a connection"));
        reader.set_read_timeout(Some(PATIENCE)).expect("valid");
        let (mut writer, _) = listener.accept().expect("the connection");
        let mut old = on(&site, Side::Client, || Conversation::begin(address(WEB.1)).expect("a connection"));
        let load = Load::start(&site);
        load.goes_on();
        drop(node);

        let older = make_older(&site, masquerade);
        load.goes_on();
        let mut node = Balancer::start(&settings);
        load.goes_on();
        assert!(old.echoes(1000), "{mode:?} {masquerade}: the older programs go on");
        node.put_together(&[
            (WEB.0, WEB.1, &[("10.2.0.2:8001", Ready)]),
            // It has begun to drain meanwhile, and nobody else is there.
            (NEWS.0, NEWS.1, &[("10.2.0.2:8002", Draining)]),
        ]);
        assert!(!older.exists());
        assert!(!masquerade || !older.parent().is_some_and(Path::exists), "nothing of the layout is left");
        // The server speaks first, and a quiet client still belongs to it.
        writer.write_all(b"news").expect("written");
        let mut heard = [0; 4];
        reader.read_exact(&mut heard).unwrap_or_else(|error| panic!("{mode:?} {masquerade}: {error}"));
        assert_eq!(&heard, b"news");
        reader.write_all(b"more").expect("written");
        writer.read_exact(&mut heard).expect("the client's answer");
        assert!(old.echoes(1000), "{mode:?} {masquerade}");
        load.goes_on();
    }
}

#[test]
#[ignore = "needs root"]
fn a_service_that_finds_no_room_takes_none_from_others_when_programs_are_replaced() {
    let site = Site::new();
    let settings = site.settings(&["clients"], PacketMode::Tc);
    let mut node = Balancer::start(&settings);
    let services: [Wanted<'_>; 2] =
        [(WEB.0, WEB.1, &[("10.2.0.2:8001", Ready)]), (NEWS.0, NEWS.1, &[("10.2.0.2:8002", Ready)])];
    node.put_together(&services);
    drop(node);

    let older = make_older(&site, false);
    let mut node = Balancer::start(&settings);
    let layout = older.parent().expect("a layout");
    fill_members(&layout.join(FORM.0), 1);
    let failures = node.try_together(&services);
    let failed: Vec<String> = failures.into_keys().map(|key| key.to_string()).collect();
    assert_eq!(failed, [NEWS.0], "there was room for one endpoint");
    let ask = |node: &mut Balancer, vip: &str| {
        let question =
            PacketQuestion { protocol: Protocol::Tcp, from: address("10.1.0.2:40000"), to: address(vip) };
        node.balancer.trace(&question).expect("an answer")
    };
    let web = PacketAnswer::Goes { from: address("10.1.0.2:40000"), to: address("10.2.0.2:8001") };
    assert_eq!(ask(&mut node, WEB.1), web);
    node.put_together(&services);
    assert_eq!(ask(&mut node, WEB.1), web);
    let news = PacketAnswer::Goes { from: address("10.1.0.2:40000"), to: address("10.2.0.2:8002") };
    assert_eq!(ask(&mut node, NEWS.1), news, "what filled the maps belonged to no service");
}

/// Puts endpoints of no service into the maps, until there is room for so many others.
fn fill_members(pins: &Path, left: u32) {
    let map = Map::HashMap(MapData::from_pin(pins.join("MEMBERS")).expect("it is pinned"));
    let mut members: HashMap<_, [u8; 24], u32> = map.try_into().expect("of that form");
    for number in left..PACKET_ENDPOINTS_MAX {
        let mut member = [0xff; 24];
        member[4..8].copy_from_slice(&number.to_ne_bytes());
        members.insert(member, number, 0).expect("there is room");
    }
}
