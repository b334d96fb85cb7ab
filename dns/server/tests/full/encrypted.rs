//! TLS, HTTPS and QUIC, and what streams of queries have in common.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesonet_dns_server::{
    CertificateFiles, Config, EncryptedConfig, EncryptedError, ForwardConfig, Server, StartError,
};
use prometheus::Registry;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{PATIENCE, addresses, query, receive_framed, send_framed};
use crate::upstream::{Behaviour, Upstream, address_of};

/// A server with all listeners and an upstream server, and what its clients need.
struct Fixture {
    server: Server,
    address: SocketAddr,
    authority: CertificateDer<'static>,
    upstream: Upstream,
    _dir: TempDir,
}

fn anywhere() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A certificate for localhost in a directory.
fn certificate(dir: &TempDir) -> (CertificateFiles, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let files = CertificateFiles { chain: dir.path().join("chain.pem"), key: dir.path().join("key.pem") };
    fs::write(&files.chain, made.cert.pem()).expect("written");
    fs::write(&files.key, made.signing_key.serialize_pem()).expect("written");
    (files, made.cert.der().clone())
}

async fn start() -> Fixture {
    let upstream = Upstream::start(1, Behaviour::Answer(60)).await;
    let dir = tempfile::tempdir().expect("a directory");
    let (files, authority) = certificate(&dir);
    let encrypted = EncryptedConfig {
        tls: Some(anywhere()),
        https: Some(anywhere()),
        quic: Some(anywhere()),
        certificate: Some(files),
    };
    let forward = ForwardConfig { upstreams: vec![upstream.address], ..ForwardConfig::default() };
    let config = Config { forward, encrypted, ..Config::at(anywhere()) };
    let server = Server::start(config, &Registry::new()).await.expect("the server starts");
    let address = server.addresses()[0];
    Fixture { server, address, authority, upstream, _dir: dir }
}

fn client_tls(authority: &CertificateDer<'static>, protocol: &[u8]) -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

impl Fixture {
    async fn connect(&self, address: Option<SocketAddr>, protocol: &[u8]) -> TlsStream<TcpStream> {
        let connector = TlsConnector::from(Arc::new(client_tls(&self.authority, protocol)));
        let stream = TcpStream::connect(address.expect("served")).await.expect("connected");
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = connector.connect(name, stream).await.expect("a handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
        stream
    }
}

fn octets(message: &Message) -> Vec<u8> {
    message.to_vec().expect("it can be encoded")
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_answered_over_tls_and_padded_on_request() {
    let fixture = start().await;
    let mut stream = fixture.connect(fixture.server.encrypted_addresses().tls, b"dot").await;
    let mut message = query("www.example.", RecordType::A);
    send_framed(&mut stream, &message).await;
    let answer = receive_framed(&mut stream).await;
    assert_eq!(addresses(&answer), address_of(1));
    assert!(answer.edns.expect("EDNS").options().options.is_empty());
    let edns = message.edns.as_mut().expect("EDNS");
    edns.options_mut().insert(EdnsOption::Unknown(12, vec![0; 20]));
    edns.options_mut().insert(EdnsOption::Unknown(11, Vec::new()));
    send_framed(&mut stream, &message).await;
    let answer = receive_framed(&mut stream).await;
    assert_eq!(octets(&answer).len(), 468);
    let edns = answer.edns.expect("EDNS");
    assert_eq!(edns.option(EdnsCode::Keepalive), Some(&EdnsOption::Unknown(11, vec![0, 100])));
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_answered_over_https() {
    let fixture = start().await;
    let stream = fixture.connect(fixture.server.encrypted_addresses().https, b"h2").await;
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a handshake");
    tokio::spawn(connection);
    let message = octets(&query("www.example.", RecordType::A));
    let post = Request::post("https://localhost/dns-query")
        .header("content-type", "application/dns-message")
        .body(Full::new(Bytes::from(message.clone())))
        .expect("a request");
    let get = Request::get(format!("https://localhost/dns-query?dns={}", base64url(&message)))
        .body(Full::default())
        .expect("a request");
    for request in [post, get] {
        let response = timeout(PATIENCE, client.send_request(request)).await.expect("in time").expect("sent");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "application/dns-message");
        let max_age = response.headers()["cache-control"].to_str().expect("text").to_owned();
        let max_age = max_age.strip_prefix("max-age=").and_then(|age| age.parse::<u32>().ok());
        assert!(max_age.is_some_and(|age| (1..=60).contains(&age)), "{max_age:?}");
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        assert_eq!(addresses(&Message::from_vec(&body).expect("an answer")), address_of(1));
    }
    let elsewhere = Request::get("https://localhost/").body(Full::default()).expect("a request");
    let response = client.send_request(elsewhere).await.expect("sent");
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    // HTTP/1.1 as well.
    let mut stream = fixture.connect(fixture.server.encrypted_addresses().https, b"http/1.1").await;
    let request = format!("GET /dns-query?dns={} HTTP/1.1\r\nHost: localhost\r\n\r\n", base64url(&message));
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut start = [0; 15];
    timeout(PATIENCE, stream.read_exact(&mut start)).await.expect("in time").expect("read");
    assert_eq!(&start, b"HTTP/1.1 200 OK");
}

fn base64url(octets: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in octets.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for at in 0..=group.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * at)) as usize & 63]));
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_answered_over_quic() {
    let fixture = start().await;
    let tls = client_tls(&fixture.authority, b"doq");
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS for QUIC");
    let mut endpoint = quinn::Endpoint::client(anywhere()).expect("an endpoint");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let address = fixture.server.encrypted_addresses().quic.expect("served");
    let connecting = endpoint.connect(address, "localhost").expect("an address");
    let connection = timeout(PATIENCE, connecting).await.expect("in time").expect("connected");
    for id in [0, 1] {
        let (mut send, mut receive) = connection.open_bi().await.expect("a stream");
        let mut message = query("www.example.", RecordType::A);
        message.metadata.id = id;
        let octets = octets(&message);
        let length = u16::try_from(octets.len()).expect("short");
        send.write_all(&[&length.to_be_bytes(), octets.as_slice()].concat()).await.expect("sent");
        send.finish().expect("finished");
        let read = timeout(PATIENCE, receive.read_to_end(65_537)).await.expect("in time");
        if id == 0 {
            let answer = read.expect("an answer");
            assert_eq!(usize::from(u16::from_be_bytes([answer[0], answer[1]])), answer.len() - 2);
            assert_eq!(addresses(&Message::from_vec(&answer[2..]).expect("an answer")), address_of(1));
        } else {
            // The id has to be 0.
            assert!(read.is_err());
            let reason = timeout(PATIENCE, connection.closed()).await.expect("in time");
            assert!(
                matches!(&reason, quinn::ConnectionError::ApplicationClosed(close)
                    if u64::from(close.error_code) == 2),
                "{reason:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_a_connection_overtake_those_that_wait() {
    let fixture = start().await;
    let mut stream = TcpStream::connect(fixture.address).await.expect("connected");
    fixture.upstream.set(Behaviour::Late(Duration::from_millis(1_500)));
    let late = query("late.example.", RecordType::A);
    send_framed(&mut stream, &late).await;
    let quick = query("version.mesos.", RecordType::A);
    send_framed(&mut stream, &quick).await;
    // Whoever sends no more still gets what it waits for.
    stream.shutdown().await.expect("closed for sending");
    let first = receive_framed(&mut stream).await;
    assert_eq!(
        (first.metadata.id, first.metadata.response_code),
        (quick.metadata.id, ResponseCode::ServFail)
    );
    let second = receive_framed(&mut stream).await;
    assert_eq!((second.metadata.id, addresses(&second)), (late.metadata.id, address_of(1)));
    assert_eq!(stream.read(&mut [0]).await.expect("read"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let (files, _) = certificate(&dir);
    let (other, _) = certificate(&tempfile::tempdir().expect("a directory"));
    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").expect("written");
    let other_key = dir.path().join("other.pem");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    fs::write(&other_key, made.signing_key.serialize_pem()).expect("written");
    for certificate in [
        None,
        Some(other),
        Some(CertificateFiles { chain: empty.clone(), ..files.clone() }),
        Some(CertificateFiles { key: empty, ..files.clone() }),
        Some(CertificateFiles { key: other_key, ..files }),
    ] {
        let encrypted = EncryptedConfig {
            tls: Some(anywhere()),
            certificate: certificate.clone(),
            ..EncryptedConfig::default()
        };
        let started = Server::start(Config { encrypted, ..Config::at(anywhere()) }, &Registry::new()).await;
        let expected = matches!(
            (&started, &certificate),
            (Err(StartError::Encrypted(EncryptedError::NoCertificate)), None)
                | (Err(StartError::Encrypted(EncryptedError::Certificate(_))), Some(_))
        );
        assert!(expected, "{certificate:?}: {started:?}");
    }
}
