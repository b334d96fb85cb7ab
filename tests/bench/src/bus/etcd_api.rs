//! As much of etcd's v3 API as watchers need (etcd's rpc.proto and kv.proto), with encryption and client certificates.

use std::path::Path;

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tokio_stream::StreamExt as _;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

/// The name in the server's certificate.
const SERVER_NAME: &str = "localhost";

const AUTHORITY_FILE: &str = "authority.pem";
const SERVER_CERTIFICATE_FILE: &str = "server.pem";
const SERVER_KEY_FILE: &str = "server.key";
const CLIENT_CERTIFICATE_FILE: &str = "client.pem";
const CLIENT_KEY_FILE: &str = "client.key";

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreateRequest>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchCreateRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

/// What a watch tells.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct WatchResponse {
    #[prost(bool, tag = "3")]
    pub(super) created: bool,
    #[prost(bool, tag = "4")]
    pub(super) canceled: bool,
    #[prost(message, repeated, tag = "11")]
    pub(super) events: Vec<Event>,
}

/// A change of a key.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Event {
    #[prost(message, optional, tag = "2")]
    pub(super) pair: Option<KeyValue>,
}

/// A key with its value.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct KeyValue {
    #[prost(bytes = "vec", tag = "5")]
    pub(super) value: Vec<u8>,
}

/// A connection.
pub(super) struct Client(Grpc<Channel>);

impl Client {
    /// Connects with the certificates of a directory.
    pub(super) async fn connect(endpoint: &str, dir: &Path) -> anyhow::Result<Self> {
        let read = |file| std::fs::read(dir.join(file)).with_context(|| format!("cannot read {file}"));
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read(AUTHORITY_FILE)?))
            .identity(Identity::from_pem(read(CLIENT_CERTIFICATE_FILE)?, read(CLIENT_KEY_FILE)?))
            .domain_name(SERVER_NAME);
        let channel = Endpoint::new(endpoint.to_owned())?.tls_config(tls)?.connect().await?;
        Ok(Self(Grpc::new(channel)))
    }

    /// Sets a key.
    pub(super) async fn put(&mut self, key: &str, value: Vec<u8>) -> anyhow::Result<()> {
        self.0.ready().await?;
        let request = Request::new(PutRequest { key: key.into(), value });
        let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
        self.0.unary(request, path, ProstCodec::<PutRequest, PutResponse>::default()).await?;
        Ok(())
    }

    /// Follows a key.
    pub(super) async fn watch(&mut self, key: &str) -> anyhow::Result<Streaming<WatchResponse>> {
        self.0.ready().await?;
        let create = WatchRequest { create: Some(WatchCreateRequest { key: key.into() }) };
        let requests = tokio_stream::once(create).chain(tokio_stream::pending());
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
        Ok(self.0.streaming(Request::new(requests), path, codec).await?.into_inner())
    }
}

/// Makes an authority and certificates of server and clients in a directory, and says how the server is told of them.
pub(super) fn certify(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(dir.join(AUTHORITY_FILE), authority.pem())?;
    for (certificate_file, key_file, purpose) in [
        (SERVER_CERTIFICATE_FILE, SERVER_KEY_FILE, ExtendedKeyUsagePurpose::ServerAuth),
        (CLIENT_CERTIFICATE_FILE, CLIENT_KEY_FILE, ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut params = CertificateParams::new([SERVER_NAME.to_owned()])?;
        params.extended_key_usages = vec![purpose, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        std::fs::write(dir.join(certificate_file), params.signed_by(&key, &authority)?.pem())?;
        std::fs::write(dir.join(key_file), key.serialize_pem())?;
    }
    let path = |file: &str| dir.join(file).display().to_string();
    Ok(vec![
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={}", path(AUTHORITY_FILE)),
        format!("--cert-file={}", path(SERVER_CERTIFICATE_FILE)),
        format!("--key-file={}", path(SERVER_KEY_FILE)),
    ])
}
