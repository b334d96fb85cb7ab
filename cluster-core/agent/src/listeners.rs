//! The TCP ports on which somebody listens, as `/proc/net/tcp` has them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::IpAddr;

/// The state of a socket that listens (`TCP_LISTEN`).
const LISTEN: &str = "0A";

/// Where somebody listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listeners(BTreeSet<(IpAddr, u16)>);

impl Listeners {
    /// Those of a network namespace: that of a process, by its directory in `/proc`.
    pub(crate) fn of(process: &str) -> io::Result<Self> {
        let mut found = BTreeSet::new();
        for table in ["tcp", "tcp6"] {
            match File::open(format!("/proc/{process}/net/{table}")) {
                Ok(file) => read(BufReader::new(file), &mut found)?,
                // A kernel without IPv6.
                Err(error) if table == "tcp6" && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(found))
    }

    /// Whether somebody listens on a port, at one of these addresses or at all of them.
    pub(crate) fn has(&self, port: u16, addresses: &[IpAddr]) -> bool {
        let mut of_port = self.0.iter().filter(|(_, own)| *own == port);
        of_port.any(|(address, _)| address.is_unspecified() || addresses.contains(address))
    }
}

/// The kernel lists sockets that listen before all others, of which there may be very many: reading ends with them.
fn read(table: impl BufRead, found: &mut BTreeSet<(IpAddr, u16)>) -> io::Result<()> {
    for line in table.lines().skip(1) {
        let line = line?;
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        found.extend(local.and_then(parse));
    }
    Ok(())
}

/// An address as the kernel writes it: words of 32 bits as this machine has them, and the port.
fn parse(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    let words = address.as_bytes().chunks(8);
    let count = words.len();
    for (word, place) in words.zip(bytes.chunks_mut(4)) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        place.copy_from_slice(&word.to_ne_bytes());
    }
    let address = match count {
        1 => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        4 => IpAddr::from(bytes).to_canonical(),
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listening_sockets_come_first() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n";
        let line =
            |local: &str, state: &str| format!("   0: {local} 00000000:0000 {state} 00000000:00000000\n");
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let loopback = word([127, 0, 0, 1]);
        let table = [
            head.to_owned(),
            line(&format!("{loopback}:1F90"), "0A"),
            line("00000000:0050", "0A"),
            line(&format!("{}{}{}{loopback}:0051", word([0; 4]), word([0; 4]), word([0, 0, 255, 255])), "0A"),
            line("00000000:0052", "01"),
            line("00000000:0053", "0A"),
        ];
        let mut found = BTreeSet::new();
        read(table.concat().as_bytes(), &mut found).expect("reads");
        let listeners = Listeners(found);
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 0, 0, 1]));
        let has = |port| (listeners.has(port, &[here]), listeners.has(port, &[there]));
        assert_eq!([0x1f90, 0x50, 0x51].map(has), [(true, false), (true, true), (true, false)]);
        assert_eq!([0x52, 0x53].map(has), [(false, false); 2]);
    }

    #[test]
    fn a_listener_of_this_process_is_seen() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).expect("listens");
            let port = listener.local_addr().expect("bound").port();
            let listeners = Listeners::of("thread-self").expect("reads");
            assert!(listeners.has(port, &[[127, 0, 0, 1].into()]), "{address}");
        }
    }
}
