//! etcd's API as JSON over HTTP, for what a test does behind the store's back.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Calls a method; returns the answer's text.
pub fn call(member: SocketAddr, method: &str, body: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(member)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let length = body.len();
        write!(stream, "POST /v3/{method} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().expect("answered");
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{method}: {answer}");
    answer
}

/// The form that keys and values have there.
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk
            .iter()
            .chain([&0; 2])
            .take(3)
            .fold(0_usize, |number, byte| number << 8 | usize::from(*byte));
        for place in 0..4 {
            let is_padding = place > chunk.len();
            text.push(if is_padding { '=' } else { char::from(DIGITS[number >> (18 - 6 * place) & 63]) });
        }
    }
    text
}
