//! A Mesos master that never changes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use serde_json::Value;

/// Serves what a Mesos master at an address says of its state to whoever asks, until the process ends. Says where.
pub fn serve(state: impl FnOnce(&str) -> Value) -> anyhow::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?.to_string();
    let body = serde_json::to_vec(&state(&address))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = answer(stream, &body) {
                eprintln!("the state was not read: {error}");
            }
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, body: &[u8]) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
