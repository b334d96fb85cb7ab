//! Asks the cluster's name server.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use hickory_proto::op::{DEFAULT_MAX_PAYLOAD_LEN, Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, Record, RecordType};
use mesonet::config::{NetSettings, Source};
use mesonet::{NetPlan, RecordsForm};
use serde_json::{Value, json};
use thiserror::Error;

use super::client::{ApiError, Client};
use super::error::CommandError;
use super::table::{Column, Table};
use super::{Session, output};

/// Asked over UDP so often before giving up: a datagram may be lost.
const ATTEMPTS: usize = 3;

/// How long one attempt waits for an answer.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);

/// The option in which a server explains an error (RFC 8914).
const EXTENDED_ERROR: u16 = 15;

/// `mesonet dns …`
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Ask for the records of a name
    Query {
        /// The name, such as web.marathon.mesos
        #[arg(value_parser = absolute_name)]
        name: Name,
        /// The type of record, such as A, AAAA or SRV
        #[arg(value_name = "TYPE", default_value = "A", value_parser = record_type)]
        record_type: RecordType,
        /// The name server
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8053")]
        server: SocketAddr,
    },
    /// Print all records in zone-file form, sorted
    Records(RecordsArguments),
}

/// What records to print.
#[derive(Debug, Args)]
pub struct RecordsArguments {
    /// The DNS API of a network daemon
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8123", conflicts_with = "source")]
    http: SocketAddr,
    /// Read mesos://HOST:5050, mesos-state://HOST:5050 or file:PATH rather than ask a daemon
    #[arg(long, value_name = "URL")]
    source: Option<Source>,
    /// config.json of mesos-dns, for its domain, credentials and the like
    #[arg(long, value_name = "FILE", requires = "source")]
    mesos_dns_config: Option<PathBuf>,
    /// JSON with principal and secret for Mesos masters
    #[arg(long, value_name = "FILE", requires = "source")]
    mesos_credentials: Option<PathBuf>,
    /// A token of DC/OS for Mesos masters
    #[arg(long, value_name = "FILE", requires = "source")]
    mesos_token_file: Option<PathBuf>,
}

/// A name could not be looked up.
#[derive(Debug, Error)]
pub enum QueryError {
    /// The query cannot be written.
    #[error("cannot ask for {name}")]
    Encode {
        /// The name.
        name: String,
        /// Why.
        source: Box<hickory_proto::ProtoError>,
    },
    /// There is no conversation.
    #[error(
        "cannot ask the name server {server}: {reason}; is `mesonet dev` running? (--server asks another)"
    )]
    Unreachable {
        /// The name server.
        server: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The answer is no DNS message.
    #[error("the answer of {server} is no DNS message: {reason}")]
    Unreadable {
        /// The name server.
        server: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The server has no answer.
    #[error("{server} answers {code} for {name}{explanation}")]
    Refused {
        /// The name server.
        server: SocketAddr,
        /// The name.
        name: String,
        /// The response code's name.
        code: &'static str,
        /// What the server adds.
        explanation: String,
    },
}

/// Carries out a command.
pub fn run(command: DnsCommand, session: &Session) -> Result<(), CommandError> {
    match command {
        DnsCommand::Query { name, record_type, server } => query(server, &name, record_type, session),
        DnsCommand::Records(arguments) => records(arguments, session),
    }
}

fn query(
    server: SocketAddr,
    name: &Name,
    record_type: RecordType,
    session: &Session,
) -> Result<(), CommandError> {
    let answer = ask(server, name, record_type)?;
    if session.output.is_json() {
        let records: Vec<Value> = answer.answers.iter().map(record_json).collect();
        let code = code_name(answer.metadata.response_code);
        session.output.value(&json!({ "status": code, "answers": records }))?;
    }
    match answer.metadata.response_code {
        ResponseCode::NoError if session.output.is_json() => Ok(()),
        ResponseCode::NoError => session.output.table(&table(&answer)),
        code => {
            let explanation = explanation(&answer);
            let name = name.to_ascii();
            Err(QueryError::Refused { server, name, code: code_name(code), explanation }.into())
        }
    }
}

/// Prints what a daemon serves, or what it would serve from a source.
fn records(arguments: RecordsArguments, session: &Session) -> Result<(), CommandError> {
    let RecordsArguments { http, source, mesos_dns_config, mesos_credentials, mesos_token_file } = arguments;
    let (form, path) = match session.output.is_json() {
        false => (RecordsForm::ZoneFile, "/v1/zone"),
        true => (RecordsForm::Json, "/v1/records"),
    };
    if source.is_none() {
        let text = Client::new(&format!("http://{http}")).text(path).map_err(|error| match error {
            ApiError::Unreachable { reason, .. } => CommandError::Failed(format!(
                "cannot reach the DNS API at {http}: {reason}; is `mesonet net` running? (--http asks another, \
                 --source needs none)"
            )),
            error => error.into(),
        })?;
        return session.output.bytes(text.as_bytes());
    }
    let settings = NetSettings {
        source,
        mesos_dns_config,
        mesos_credentials,
        mesos_token_file,
        ..NetSettings::default()
    };
    let plan =
        NetPlan::resolve(settings, None).map_err(|error| CommandError::Failed(causes(&error.into())))?;
    for warning in plan.warnings() {
        output::warn(&format!("warning: {warning}"));
    }
    let mut text = Vec::new();
    mesonet::write_records(&plan, form, &mut text).map_err(|error| CommandError::Failed(causes(&error)))?;
    session.output.bytes(&text)
}

fn causes(error: &anyhow::Error) -> String {
    format!("{error:#}")
}

fn absolute_name(text: &str) -> Result<Name, String> {
    let mut name = Name::from_utf8(text).map_err(|error| error.to_string())?;
    name.set_fqdn(true);
    Ok(name)
}

fn record_type(text: &str) -> Result<RecordType, String> {
    text.to_ascii_uppercase()
        .parse()
        .map_err(|_| format!("'{text}' is no record type, such as A, AAAA or SRV"))
}

/// Asks over UDP, and over TCP if the answer does not fit.
fn ask(server: SocketAddr, name: &Name, record_type: RecordType) -> Result<Message, QueryError> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), record_type));
    let mut edns = Edns::new();
    edns.set_max_payload(DEFAULT_MAX_PAYLOAD_LEN);
    query.set_edns(edns);
    let bytes = query
        .to_vec()
        .map_err(|source| QueryError::Encode { name: name.to_ascii(), source: Box::new(source) })?;

    let unreachable = |error: io::Error| QueryError::Unreachable { server, reason: reason(&error) };
    let answer = read(server, &over_udp(server, &bytes).map_err(unreachable)?)?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    read(server, &over_tcp(server, &bytes).map_err(unreachable)?)
}

fn read(server: SocketAddr, bytes: &[u8]) -> Result<Message, QueryError> {
    Message::from_vec(bytes).map_err(|error| QueryError::Unreadable { server, reason: error.to_string() })
}

fn over_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from(([0_u16; 8], 0))
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(ATTEMPT_TIMEOUT))?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..ATTEMPTS {
        socket.send(query)?;
        match socket.recv(&mut buffer) {
            // The socket is connected and fresh: what has the query's id is its answer.
            Ok(length) if buffer[..length].starts_with(&query[..2]) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn over_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, ATTEMPT_TIMEOUT)?;
    stream.set_read_timeout(Some(ATTEMPT_TIMEOUT))?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
        _ => error.to_string(),
    }
}

fn table(answer: &Message) -> Table<4> {
    let mut table = Table::new([
        Column::text("NAME", 120),
        Column::number("TTL"),
        Column::text("TYPE", 8),
        Column::text("DATA", 160),
    ]);
    for record in &answer.answers {
        table.row([
            record.name.to_ascii(),
            record.ttl.to_string(),
            record.record_type().to_string(),
            record.data.to_string(),
        ]);
    }
    table
}

fn record_json(record: &Record) -> Value {
    json!({
        "name": record.name.to_ascii(),
        "ttl": record.ttl,
        "type": record.record_type().to_string(),
        "data": record.data.to_string(),
    })
}

/// The server's own words (RFC 8914), as the end of a sentence.
fn explanation(answer: &Message) -> String {
    let option = answer.edns.as_ref().and_then(|edns| edns.option(EdnsCode::from(EXTENDED_ERROR)));
    match option {
        Some(EdnsOption::Unknown(_, bytes)) if bytes.len() > 2 => {
            let text = String::from_utf8_lossy(&bytes[2..]);
            format!(": {}", text.replace(char::is_control, " "))
        }
        _ => String::new(),
    }
}

/// The name that tools show.
fn code_name(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        other => other.to_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers one query over UDP as told.
    fn answer_once(make: impl FnOnce(Message) -> Message + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let address = socket.local_addr().expect("address");
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, client) = socket.recv_from(&mut buffer).expect("query");
            let query = Message::from_vec(&buffer[..length]).expect("readable query");
            let answer = make(query.into_response()).to_vec().expect("answer");
            socket.send_to(&answer, client).expect("send");
        });
        address
    }

    #[test]
    fn names_are_absolute_whatever_the_dot() {
        for text in ["web.marathon.mesos", "web.marathon.mesos."] {
            assert_eq!(absolute_name(text).expect(text).to_ascii(), "web.marathon.mesos.");
        }
        assert!(absolute_name("a..b").is_err());
        assert_eq!(record_type("srv"), Ok(RecordType::SRV));
        assert!(record_type("XYZ").expect_err("no type").contains("such as"));
    }

    #[test]
    fn the_server_explains_in_its_own_words() {
        let server = answer_once(|mut answer| {
            answer.metadata.response_code = ResponseCode::ServFail;
            let mut edns = Edns::new();
            edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, b"\0\x0eno view yet".to_vec()));
            answer.set_edns(edns);
            answer
        });
        let name = absolute_name("leader.mesos").expect("name");
        let answer = ask(server, &name, RecordType::A).expect("answer");
        assert_eq!(code_name(answer.metadata.response_code), "SERVFAIL");
        assert_eq!(explanation(&answer), ": no view yet");
    }

    #[test]
    fn nobody_listening_is_said_at_once() {
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("free port");
        let name = absolute_name("leader.mesos").expect("name");
        let error = ask(free, &name, RecordType::A).expect_err("nobody listens").to_string();
        assert!(error.contains("nobody listens there"), "{error}");
    }
}
