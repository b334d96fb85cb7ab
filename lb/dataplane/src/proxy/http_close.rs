//! Lets clients of HTTP/1 leave an endpoint that drains without a failed request.
//!
//! A keep-alive connection under load has no moment at which a proxy could close it: the next request may be under way.
//! What HTTP has for this is `Connection: close` (RFC 9112 §9.6), a hop-by-hop field that any proxy may set: the
//! endpoint answers and closes, the client sees in the answer that it must not send another request, and connects anew.
//! So, while an endpoint drains, the field is set in the next request and in the answer to it.
//!
//! The proxy does not know which protocol a connection carries, so it looks only at bytes that arrive from the client
//! when the endpoint was the last to speak, and only at a complete head that begins like an HTTP/1 request. Whatever
//! else passes as it is. Neither framing nor the length of bodies matter, because nothing is cut or moved.

/// Who spoke last on a connection, and whether the answer to the last request must be marked.
#[derive(Debug)]
pub(super) struct Exchange {
    client_may_begin: bool,
    marks_answer: bool,
}

impl Exchange {
    pub(super) fn new() -> Self {
        Self { client_may_begin: true, marks_answer: false }
    }

    /// Bytes from the client are about to be forwarded. Returns what to forward in their place, if anything.
    pub(super) fn client_speaks(&mut self, bytes: &[u8], draining: bool) -> Option<Vec<u8>> {
        let begins = std::mem::replace(&mut self.client_may_begin, false);
        if !draining || !begins {
            return None;
        }
        let marked = mark_request(bytes)?;
        self.marks_answer = true;
        Some(marked)
    }

    /// Bytes from the endpoint are about to be forwarded. Returns what to forward in their place, if anything.
    pub(super) fn endpoint_speaks(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.client_may_begin = true;
        if !self.marks_answer {
            return None;
        }
        self.marks_answer = false;
        mark_answer(bytes)
    }

    /// Whether the next bytes of the endpoint must be seen.
    pub(super) fn watches_endpoint(&self) -> bool {
        self.marks_answer
    }
}

const FIELD: &[u8] = b"Connection: close";

/// The same request with `Connection: close`, or `None` if the bytes do not begin with the complete head of an HTTP/1
/// request, or with one that opens a tunnel, negotiates its body or says so already.
fn mark_request(bytes: &[u8]) -> Option<Vec<u8>> {
    let head_end = find(bytes, b"\r\n\r\n")?;
    let (head, rest) = bytes.split_at(head_end);
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request_line = lines.next().filter(|line| is_request_line(line))?;
    let mut marked = Vec::with_capacity(bytes.len() + FIELD.len() + 2);
    marked.extend_from_slice(request_line);
    let mut options = Vec::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.eq_ignore_ascii_case(b"upgrade") || name.eq_ignore_ascii_case(b"expect") {
            return None;
        }
        if name.eq_ignore_ascii_case(b"connection") {
            options.extend(value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
        } else {
            marked.extend_from_slice(b"\r\n");
            marked.extend_from_slice(line);
        }
    }
    let is = |option: &[u8], name: &[u8]| option.eq_ignore_ascii_case(name);
    if options.iter().any(|option| is(option, b"close") || is(option, b"upgrade")) {
        return None;
    }
    marked.extend_from_slice(b"\r\n");
    marked.extend_from_slice(FIELD);
    for option in options.iter().filter(|option| !option.is_empty() && !is(option, b"keep-alive")) {
        marked.extend_from_slice(b", ");
        marked.extend_from_slice(option);
    }
    marked.extend_from_slice(rest);
    Some(marked)
}

/// The same answer with `Connection: close` as its first field, or `None` if the bytes do not begin with the status line of
/// a final HTTP/1 answer. Another `Connection` field may follow; `close` in any of them counts.
fn mark_answer(bytes: &[u8]) -> Option<Vec<u8>> {
    let line_end = find(bytes, b"\r\n")?;
    let status = bytes[..line_end].strip_prefix(b"HTTP/1.")?.get(2..5)?;
    if !status.iter().all(u8::is_ascii_digit) || status[0] == b'1' {
        return None;
    }
    let mut marked = Vec::with_capacity(bytes.len() + FIELD.len() + 2);
    marked.extend_from_slice(&bytes[..line_end + 2]);
    marked.extend_from_slice(FIELD);
    marked.extend_from_slice(&bytes[line_end..]);
    Some(marked)
}

fn is_request_line(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    method.is_some_and(|method| {
        !method.is_empty() && method.iter().all(u8::is_ascii_uppercase) && method != b"CONNECT"
    }) && target.is_some_and(|target| !target.is_empty())
        && matches!(version, Some(b"HTTP/1.1" | b"HTTP/1.0"))
        && words.next().is_none()
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(mark: fn(&[u8]) -> Option<Vec<u8>>, text: &str) -> Option<String> {
        mark(text.as_bytes()).map(|bytes| String::from_utf8(bytes).expect("text"))
    }

    #[test]
    fn requests_are_marked() {
        for (request, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
            ("GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nConnection: close\r\n\r\n"),
            (
                "POST /a?b HTTP/1.1\r\nconnection: Keep-Alive, TE\r\nContent-Length: 3\r\n\r\nabc",
                "POST /a?b HTTP/1.1\r\nContent-Length: 3\r\nConnection: close, TE\r\n\r\nabc",
            ),
            (
                "GET / HTTP/1.0\r\nConnection: keep-alive\r\nHost: a\r\n\r\n",
                "GET / HTTP/1.0\r\nHost: a\r\nConnection: close\r\n\r\n",
            ),
        ] {
            assert_eq!(marked(mark_request, request).as_deref(), Some(expected), "{request:?}");
        }
    }

    #[test]
    fn anything_but_a_plain_request_passes_as_it_is() {
        for bytes in [
            "",
            "\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            "GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "PUT /a HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "get / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nno field\r\n\r\n",
            "*1\r\n$4\r\nPING\r\n\r\n",
            "\u{16}\u{3}\u{1}\r\n\r\n",
        ] {
            assert_eq!(marked(mark_request, bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn final_answers_are_marked_and_nothing_else() {
        for (answer, expected) in [
            (
                "HTTP/1.1 200 OK\r\nA: b\r\n\r\nx",
                Some("HTTP/1.1 200 OK\r\nConnection: close\r\nA: b\r\n\r\nx"),
            ),
            ("HTTP/1.0 404 \r\n\r\n", Some("HTTP/1.0 404 \r\nConnection: close\r\n\r\n")),
            ("HTTP/1.1 200\r\n\r\n", Some("HTTP/1.1 200\r\nConnection: close\r\n\r\n")),
            ("HTTP/1.1 100 Continue\r\n\r\n", None),
            ("HTTP/1.1 200 OK", None),
            ("HTTP/1.1\r\n", None),
            ("body\r\n", None),
            ("", None),
        ] {
            assert_eq!(marked(mark_answer, answer).as_deref(), expected, "{answer:?}");
        }
    }

    #[test]
    fn only_requests_at_the_client_s_turn_are_marked_while_draining() {
        const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut exchange = Exchange::new();
        assert_eq!(exchange.client_speaks(REQUEST, false), None);
        assert_eq!(exchange.client_speaks(REQUEST, true), None, "the endpoint has not answered yet");
        assert_eq!(exchange.endpoint_speaks(b"HTTP/1.1 200 OK\r\n\r\n"), None);
        assert!(exchange.client_speaks(REQUEST, true).is_some());
        assert!(exchange.watches_endpoint());
        assert!(exchange.endpoint_speaks(b"HTTP/1.1 200 OK\r\n\r\n").is_some());
        assert_eq!(exchange.endpoint_speaks(b"HTTP/1.1 200 OK\r\n\r\n"), None);
    }
}
