//! A way to etcd that a test can cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WHOLE: u8 = 0;
/// What etcd says is lost.
const DEAF: u8 = 1;
/// Nothing gets through.
const CUT: u8 = 2;
/// Each piece takes its time.
const SLOW: u8 = 3;

/// How long that is.
const DELAY: Duration = Duration::from_millis(25);

/// Forwards connections to one address. They end with the test's process.
#[derive(Debug)]
pub struct Cable {
    address: SocketAddr,
    state: Arc<AtomicU8>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Cable {
    /// A cable to an address.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(AtomicU8::new(WHOLE));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (seen, kept) = (state.clone(), connections.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(target) else { continue };
                let both = || Some([client.try_clone().ok()?, server.try_clone().ok()?]);
                kept.lock().expect("connections").extend(both().into_iter().flatten());
                let [from, to] = both().expect("cloned");
                forward(from, to, seen.clone(), |state| state == CUT);
                forward(server, client, seen.clone(), |state| matches!(state, DEAF | CUT));
            }
        });
        Self { address, state, connections }
    }

    /// Where it begins.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Loses what etcd answers from here on.
    pub fn lose_answers(&self) {
        self.state.store(DEAF, Ordering::SeqCst);
    }

    /// Brings everything later from here on.
    pub fn slow_down(&self) {
        self.state.store(SLOW, Ordering::SeqCst);
    }

    /// Lets nothing through from here on, without telling anybody.
    pub fn cut(&self) {
        self.state.store(CUT, Ordering::SeqCst);
    }

    /// Lets new connections through; those that have lost something are ended.
    pub fn mend(&self) {
        for connection in self.connections.lock().expect("connections").drain(..) {
            // It may have ended.
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.state.store(WHOLE, Ordering::SeqCst);
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, state: Arc<AtomicU8>, is_lost: fn(u8) -> bool) {
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if state.load(Ordering::SeqCst) == SLOW {
                std::thread::sleep(DELAY);
            }
            if is_lost(state.load(Ordering::SeqCst)) {
                continue;
            }
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // Either may have ended.
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}
