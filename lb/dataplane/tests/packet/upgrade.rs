//! A process of another version takes over, whose maps have another form.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, MapInfo};
use mesonet_ebpf_abi::PACKET_ENDPOINTS_MAX;
use mesonet_lb_dataplane::{PacketAnswer, PacketHook, PacketMode, PacketQuestion};
use mesonet_lb_plan::RouteState::{Draining, Ready};
use mesonet_model::Protocol;

use crate::packets::{TCP, packet};
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

/// What clients of one address do while programs are replaced: each round begins a flow and uses the newest again.
struct Rounds {
    done: Receiver<()>,
    is_over: Arc<AtomicBool>,
    result: JoinHandle<Result<Vec<String>, String>>,
}

impl Rounds {
    /// `begin` makes a flow, and `ask` uses it and returns what its server says of it, which is always the same.
    fn start<F: Send + 'static>(
        site: &Site,
        begin: impl Fn() -> std::io::Result<F> + Send + 'static,
        ask: impl Fn(&mut F) -> std::io::Result<String> + Send + 'static,
    ) -> Self {
        let (news, done) = mpsc::channel();
        let is_over = Arc::new(AtomicBool::new(false));
        let entry = site.entry(Side::Client);
        let over = is_over.clone();
        let result = thread::spawn(move || {
            entry.enter();
            rounds(begin, ask, &news, &over).map_err(|error| error.to_string())
        });
        Self { done, is_over, result }
    }

    /// Waits for some more rounds. If a flow is lost, there are none, and the end tells why.
    fn go_on(&self) {
        self.done.try_iter().for_each(drop);
        for _ in 0..ROUNDS {
            let _ = self.done.recv_timeout(PATIENCE);
        }
    }

    /// What the servers of the flows say that are begun last. One that has the port of a former one has its server, too.
    fn end(self) -> Result<Vec<String>, String> {
        self.is_over.store(true, Ordering::Relaxed);
        self.result.join().expect("no panic")
    }
}

/// More than a client uses again in a round, so that old flows and new ones are both in use.
const ROUNDS: usize = 20;

/// Flows that a client has, and how many of them it uses in a round.
const FLOWS: usize = 50;
const NEWEST: usize = 5;

/// Flows that a client begins: there are ports for twice as many.
const FLOWS_MAX: usize = 2_000;

fn rounds<F>(
    begin: impl Fn() -> std::io::Result<F>,
    ask: impl Fn(&mut F) -> std::io::Result<String>,
    news: &Sender<()>,
    is_over: &AtomicBool,
) -> std::io::Result<Vec<String>> {
    let mut flows: VecDeque<(F, String)> = VecDeque::new();
    let mut begun = 0;
    loop {
        let is_last = is_over.load(Ordering::Relaxed);
        let wanted = if is_last { ROUNDS } else { usize::from(begun < FLOWS_MAX) };
        for _ in 0..wanted {
            let mut flow = begin()?;
            let said = ask(&mut flow)?;
            flows.push_back((flow, said));
            begun += 1;
        }
        let used = if is_last { flows.len() } else { NEWEST };
        for (flow, said) in flows.iter_mut().rev().take(used) {
            let again = ask(flow)?;
            if again != *said {
                return Err(std::io::Error::other(format!("{said} has become {again}")));
            }
        }
        if is_last {
            return Ok(flows.into_iter().rev().take(ROUNDS).map(|(_, said)| said).collect());
        }
        flows.drain(..flows.len().saturating_sub(FLOWS));
        let _ = news.send(());
    }
}

/// Says something and expects it back.
fn echo(conversation: &mut Conversation) -> std::io::Result<String> {
    conversation.stream.write_all(b"something")?;
    let mut heard = [0; 9];
    conversation.stream.read_exact(&mut heard)?;
    assert_eq!(&heard, b"something");
    Ok(conversation.line.clone())
}

fn socket_towards(vip: &str) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(if vip.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(address(vip))?;
    Ok(socket)
}

fn ask(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"?")?;
    let mut heard = [0; 64];
    let length = socket.recv(&mut heard)?;
    Ok(String::from_utf8_lossy(&heard[..length]).into_owned())
}

/// A server that tells each client a name, and the address and port that the client seems to have.
fn serve_named_datagrams(site: &Site, at: &'static str, name: char) {
    let socket = on(site, Side::Server, move || UdpSocket::bind(at).expect("bind"));
    thread::spawn(move || {
        while let Ok((_, client)) = socket.recv_from(&mut [0; 64]) {
            if socket.send_to(format!("{name} {client}").as_bytes(), client).is_err() {
                return;
            }
        }
    });
}

/// Virtual addresses whose endpoints are replaced.
const MOVED: [&str; 2] = ["11.0.0.1:80", "[fd11::1]:80"];

/// What the older programs serve.
const BEFORE: [Wanted<'static>; 5] = [
    ("tcp/four@marathon:80", MOVED[0], &[("10.2.0.2:8001", Ready)]),
    ("udp/four@marathon:80", MOVED[0], &[("10.2.0.2:8001", Ready)]),
    ("tcp/six@marathon:80", MOVED[1], &[("[fd02::2]:8001", Ready)]),
    ("udp/six@marathon:80", MOVED[1], &[("[fd02::2]:8001", Ready)]),
    (NEWS.0, NEWS.1, &[("10.2.0.9:8001", Ready)]),
];

/// What the newer ones serve: nothing there leads to where the flows are that the older ones have begun.
const AFTER: [Wanted<'static>; 5] = [
    ("tcp/four@marathon:80", MOVED[0], &[("10.2.0.2:8001", Draining), ("10.2.0.2:8002", Ready)]),
    ("udp/four@marathon:80", MOVED[0], &[("10.2.0.2:8001", Draining), ("10.2.0.2:8002", Ready)]),
    ("tcp/six@marathon:80", MOVED[1], &[("[fd02::2]:8001", Draining), ("[fd02::2]:8002", Ready)]),
    ("udp/six@marathon:80", MOVED[1], &[("[fd02::2]:8001", Draining), ("[fd02::2]:8002", Ready)]),
    (NEWS.0, NEWS.1, &[("10.2.0.9:8001", Ready)]),
];

/// Flows that nobody uses, so that it takes a while to copy them all.
fn fill(node: &mut Balancer) {
    let clients = node.balancer.attached()[0].index;
    for number in 0..4000 {
        let client = format!("10.1.{}.{}:{}", 1 + number / 200, 10 + number % 200, 20_000 + number);
        let octets = packet(TCP, &client, NEWS.1).octets();
        node.balancer.run(PacketHook::In, &octets, clients, 1).expect("it runs");
    }
}

#[test]
#[ignore = "needs root"]
fn flows_that_begin_while_programs_are_replaced_stay_where_they_are() {
    let ways = WAYS.map(|(mode, masquerade)| (mode, mode, masquerade));
    // Then the older programs come before those that replace them.
    let from_early = (PacketMode::XdpGeneric, PacketMode::Tc, true);
    for (before, mode, masquerade) in ways.into_iter().chain([from_early]) {
        let site = Site::new();
        for (at, name) in
            [("10.2.0.2:8001", 'a'), ("[fd02::2]:8001", 'a'), ("10.2.0.2:8002", 'b'), ("[fd02::2]:8002", 'b')]
        {
            serve(&site, at, name);
            serve_named_datagrams(&site, at, name);
        }
        let mut settings = site.settings(&["clients", "servers"], before);
        settings.masquerade = masquerade;
        let mut node = Balancer::start(&settings);
        node.put_together(&BEFORE);
        fill(&mut node);
        drop(node);
        make_older(&site, masquerade);
        settings.mode = mode;
        let mut node = Balancer::start(&settings);
        let loads = MOVED.map(|vip| {
            [
                Rounds::start(&site, move || Conversation::begin(address(vip)), echo),
                Rounds::start(&site, move || socket_towards(vip), |socket| ask(socket)),
            ]
        });
        loads.iter().flatten().for_each(Rounds::go_on);
        node.put_together(&AFTER);
        loads.iter().flatten().for_each(Rounds::go_on);
        for said in loads.into_iter().flatten().map(Rounds::end) {
            let said = said.unwrap_or_else(|error| panic!("{mode:?} {masquerade}: {error}"));
            assert!(said.iter().any(|each| each.starts_with('b')), "{mode:?} {masquerade}: {said:?}");
        }
    }
}
