//! The cluster's certificate authority in a directory of the master.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesonet_model::{AgentId, ClusterId, Timestamp};
use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::certificate::{self, CertificateError, Fingerprint, Holder, NoRandomness};
use super::file_records::FileRecords;
use super::files::{self, FileError};
use super::records::{self, Issued, Node, RecordError, Records, Token};
use crate::{Identity, JoinToken, NodeName, Role, TokenTerms, clock};

/// Nodes that may join with one token.
pub const TOKEN_USES_MAX: u32 = 10_000;

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";
const REVOCATIONS: &str = "revocations";
const NODES: &str = "nodes";
const TOKENS: &str = "tokens";

/// The authority: its key and certificate, the nodes that it knows and the tokens that it has given out.
///
/// Key and certificate are files in a directory; nodes and tokens are [`Records`], read anew for each operation and
/// changed in single steps, so several masters and commands may work on them at once.
#[derive(Debug, Clone)]
pub struct Authority {
    dir: PathBuf,
    records: Arc<dyn Records>,
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    issuer: Arc<Issuer<'static, KeyPair>>,
    /// One change at a time: a thousand nodes that join with one token at once would make each other try again.
    changing: Arc<Mutex<()>>,
}

/// What the authority knows of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its name.
    pub name: NodeName,
    /// What it may be.
    pub roles: BTreeSet<Role>,
    /// When its newest certificate ends; `None` once it is revoked.
    pub expires: Option<Timestamp>,
    /// The agent that runs there, once it has registered.
    pub agent: Option<AgentId>,
}

/// What the authority knows of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its public name, the third part of the token.
    pub id: String,
    /// When it ends.
    pub expires: Timestamp,
    /// How many nodes can still join with it.
    pub uses_left: u32,
    /// What they may be.
    pub roles: BTreeSet<Role>,
}

/// Why the authority cannot do what it is asked. Nothing has changed then.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// There is one already.
    #[error("{} holds an authority already", .0.display())]
    Exists(PathBuf),
    /// The certificate is none of an authority.
    #[error("the authority's certificate cannot be used")]
    Certificate(#[from] CertificateError),
    /// The key and the certificate cannot be used.
    #[error("the authority's key or certificate in {} cannot be used: {reason}", dir.display())]
    Key {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A record cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// No randomness.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// There is no token with this id.
    #[error("there is no join token {0}")]
    UnknownToken(String),
    /// Nobody with this name has joined.
    #[error("no node named {0} has joined")]
    UnknownNode(NodeName),
    /// A token must let at least one node join, and not more than are sensible.
    #[error("a token is for 1 to {TOKEN_USES_MAX} nodes, not {0}")]
    TokenUses(u32),
    /// Masters do not join with tokens.
    #[error("a token is for agent, net or operator, not for {0}")]
    TokenRole(Role),
    /// A token that allows nothing.
    #[error("a token needs a role")]
    TokenWithoutRole,
}

/// Why a node is not let in.
#[derive(Debug, Error)]
pub(crate) enum CertifyError {
    #[error("the join token is unknown to this master")]
    TokenUnknown,
    #[error("the join token has expired at {0} by the master's clock")]
    TokenExpired(Timestamp),
    #[error("the join token is used up")]
    TokenUsed,
    #[error("the name {0} belongs to a node with another key: revoke that one or choose another name")]
    NameTaken(NodeName),
    #[error(
        "the certificate of {0} is revoked; to join again, it needs a token and must not have identity/ in its directory"
    )]
    Revoked(NodeName),
    #[error("the certificate request cannot be used: {0}")]
    BadRequest(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl From<RecordError> for CertifyError {
    fn from(error: RecordError) -> Self {
        Self::Authority(error.into())
    }
}

impl Authority {
    /// Makes an authority for a new cluster. Its files are for the owner only.
    ///
    /// # Errors
    /// When the directory holds one already, or cannot be written.
    pub fn create(dir: &Path, cluster: &ClusterId) -> Result<Self, AuthorityError> {
        if dir.join(KEY_FILE).exists() || dir.join(CERTIFICATE_FILE).exists() {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        for folder in [dir.to_owned(), dir.join(NODES), dir.join(TOKENS)] {
            files::make_dir(&folder)?;
        }
        let unusable =
            |error: rcgen::Error| AuthorityError::Key { dir: dir.to_owned(), reason: error.to_string() };
        let key = KeyPair::generate().map_err(unusable)?;
        let params = certificate::authority_params(cluster, clock::now());
        let certificate = params.self_signed(&key).map_err(unusable)?;
        files::write(&dir.join(KEY_FILE), key.serialize_pem().as_bytes())?;
        files::write(&dir.join(CERTIFICATE_FILE), certificate.pem().as_bytes())?;
        Self::load(dir)
    }

    /// Takes up the authority of a directory, with its records there too.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        Self::with_records(dir, Arc::new(FileRecords::new(dir)))
    }

    /// Takes up the authority of a directory, with its records elsewhere.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn with_records(dir: &Path, records: Arc<dyn Records>) -> Result<Self, AuthorityError> {
        let unusable = |reason: String| AuthorityError::Key { dir: dir.to_owned(), reason };
        let key = KeyPair::from_pem(&files::read(&dir.join(KEY_FILE))?)
            .map_err(|error| unusable(error.to_string()))?;
        let pem = files::read(&dir.join(CERTIFICATE_FILE))?;
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        let cluster = certificate::authority_cluster(&certificate)?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            dir: dir.to_owned(),
            records,
            cluster,
            certificate,
            issuer: Arc::new(issuer),
            changing: Arc::default(),
        })
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// Makes a token. The master keeps only a hash of its secret.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub fn create_token(&self, terms: &TokenTerms) -> Result<JoinToken, AuthorityError> {
        if !(1..=TOKEN_USES_MAX).contains(&terms.uses) {
            return Err(AuthorityError::TokenUses(terms.uses));
        }
        if terms.roles.contains(&Role::Master) {
            return Err(AuthorityError::TokenRole(Role::Master));
        }
        if terms.roles.is_empty() {
            return Err(AuthorityError::TokenWithoutRole);
        }
        let now = clock::now();
        self.remove_expired_tokens(now)?;
        let token = JoinToken::new(certificate::fingerprint(&self.certificate))?;
        let record = Token {
            secret: certificate::fingerprint(token.secret.as_bytes()),
            expires: now.plus(terms.ttl),
            uses_left: terms.uses,
            roles: terms.roles.clone(),
            joined: Vec::new(),
        };
        self.update(&token_name(&token.id), |_: Option<Token>| {
            Ok::<_, AuthorityError>((Some(record.clone()), ()))
        })?;
        Ok(token)
    }

    /// Declares every certificate of a node void and frees its name. Its connections end within a second.
    ///
    /// # Errors
    /// When there is no such node, or it cannot be kept.
    pub fn revoke(&self, name: &NodeName) -> Result<(), AuthorityError> {
        self.update(&node_name(name), |node: Option<Node>| {
            let mut node = node.ok_or_else(|| AuthorityError::UnknownNode(name.clone()))?;
            node.key = None;
            node.agent = None;
            node.revoked.append(&mut node.issued);
            Ok::<_, AuthorityError>((Some(node), ()))
        })?;
        // Whatever it holds, it differs from before.
        let mark = super::hex::encode(&certificate::random::<16>()?);
        let is_marked = || {
            let old = self.records.read(REVOCATIONS)?;
            self.records.swap(REVOCATIONS, old.as_deref(), Some(&mark))
        };
        // Whoever was faster has left another mark, which is as good.
        is_marked()?;
        Ok(())
    }

    /// Every node that has joined, by name.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn nodes(&self) -> Result<Vec<NodeRecord>, AuthorityError> {
        let mut nodes = Vec::new();
        for (name, content) in self.records.list(NODES)? {
            let node: Node = records::parse(&name, &content)?;
            let expires = node.issued.iter().map(|issued| issued.expires).max();
            nodes.push(NodeRecord { name: node.name, roles: node.roles, expires, agent: node.agent });
        }
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(nodes)
    }

    /// Every token that can still be used, by id.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, AuthorityError> {
        let now = clock::now();
        let mut tokens = Vec::new();
        for (name, content) in self.records.list(TOKENS)? {
            let Token { expires, uses_left, roles, .. } = records::parse(&name, &content)?;
            if expires > now && uses_left > 0 {
                let id = name.rsplit('/').next().unwrap_or_default().to_owned();
                tokens.push(TokenRecord { id, expires, uses_left, roles });
            }
        }
        tokens.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(tokens)
    }

    /// Makes a token useless, given its id. Nodes that have joined with it stay.
    ///
    /// # Errors
    /// When there is no such token, or it cannot be removed.
    pub fn revoke_token(&self, id: &str) -> Result<(), AuthorityError> {
        let unknown = || AuthorityError::UnknownToken(id.to_owned());
        if !JoinToken::is_id(id) {
            return Err(unknown());
        }
        self.update(&token_name(id), |token: Option<Token>| token.map(|_| (None, ())).ok_or_else(unknown))
    }

    /// The authority's own certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Something that differs after each revocation.
    pub(crate) fn revocations(&self) -> Result<Option<String>, AuthorityError> {
        Ok(self.records.read(REVOCATIONS)?)
    }

    /// A new key and certificate for a master, which live in memory only.
    pub(crate) fn certify_master(
        &self,
        name: &NodeName,
        lifetime: Duration,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), AuthorityError> {
        let key = KeyPair::generate().map_err(|error| self.unusable(&error))?;
        let certificate = self.sign(&key, name, &BTreeSet::from([Role::Master]), lifetime)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|reason| AuthorityError::Key { dir: self.dir.clone(), reason: reason.to_owned() })?;
        Ok((certificate, key))
    }

    /// An identity with which a master connects to another one, made anew and in memory only.
    pub(crate) fn master_identity(
        &self,
        name: &NodeName,
        lifetime: Duration,
    ) -> Result<Identity, AuthorityError> {
        let (certificate, key) = self.certify_master(name, lifetime)?;
        let holder = Holder::of(&certificate)?;
        Ok(Identity { holder, certificate, key, authority: self.certificate.clone() })
    }

    /// Lets a node in that presents a token.
    pub(crate) fn enrol(
        &self,
        token_id: &str,
        secret: &str,
        name: &NodeName,
        request: &[u8],
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, CertifyError> {
        let request = parse_request(request)?;
        let key = key_fingerprint(&request);
        let now = clock::now();
        if !JoinToken::is_id(token_id) {
            return Err(CertifyError::TokenUnknown);
        }
        // A join that is bound to fail must not use the token up, and without a token nobody learns who has joined.
        used(records::read(&*self.records, &token_name(token_id))?, secret, &key, now)?;
        check_free(self.node(name)?.as_ref(), name, &key)?;
        let roles = self.update(&token_name(token_id), |token: Option<Token>| {
            let token = used(token, secret, &key, now)?;
            let roles = token.roles.clone();
            Ok::<_, CertifyError>((Some(token), roles))
        })?;
        self.update(&node_name(name), |known: Option<Node>| {
            check_free(known.as_ref(), name, &key)?;
            let node = Node {
                name: name.clone(),
                key: Some(key.clone()),
                roles: roles.clone(),
                issued: known.as_ref().map(|node| node.issued.clone()).unwrap_or_default(),
                revoked: known.as_ref().map(|node| node.revoked.clone()).unwrap_or_default(),
                agent: known.and_then(|node| node.agent),
            };
            self.issue(node, &request, now, lifetime)
        })
    }

    /// Gives a node that is in a new certificate for the same key.
    pub(crate) fn renew(
        &self,
        holder: &Holder,
        request: &[u8],
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, CertifyError> {
        let request = parse_request(request)?;
        self.update(&node_name(&holder.name), |node: Option<Node>| {
            let node = admitted(node, holder)?;
            if key_fingerprint(&request) != holder.key {
                return Err(CertifyError::NameTaken(holder.name.clone()));
            }
            self.issue(node, &request, clock::now(), lifetime)
        })
    }

    /// Whether a node whose certificate is genuine is still let in, and the agent that it runs.
    pub(crate) fn check(&self, holder: &Holder) -> Result<Option<AgentId>, CertifyError> {
        admitted(self.node(&holder.name)?, holder).map(|node| node.agent)
    }

    /// Remembers the agent that runs on a node.
    pub(crate) fn bind_agent(&self, name: &NodeName, agent: &AgentId) -> Result<(), AuthorityError> {
        self.update(&node_name(name), |node: Option<Node>| {
            Ok((node.map(|node| Node { agent: Some(agent.clone()), ..node }), ()))
        })
    }

    /// The node with a new certificate, and that.
    fn issue(
        &self,
        mut node: Node,
        request: &CertificateSigningRequestParams,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<(Option<Node>, CertificateDer<'static>), CertifyError> {
        let certificate = self.sign(&request.public_key, &node.name, &node.roles, lifetime)?;
        let holder = Holder::of(&certificate).map_err(AuthorityError::from)?;
        node.issued.retain(|issued| issued.expires > now);
        node.revoked.retain(|revoked| revoked.expires > now);
        node.issued.push(Issued { serial: holder.serial, expires: holder.not_after });
        Ok((Some(node), certificate))
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        name: &NodeName,
        roles: &BTreeSet<Role>,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let params = certificate::node_params(&self.cluster, name, roles, clock::now(), lifetime)?;
        let certificate = params.signed_by(key, &self.issuer).map_err(|error| self.unusable(&error))?;
        Ok(certificate.der().clone())
    }

    fn remove_expired_tokens(&self, now: Timestamp) -> Result<(), AuthorityError> {
        for (name, content) in self.records.list(TOKENS)? {
            let token: Token = records::parse(&name, &content)?;
            if token.expires.plus(TOKEN_REMEMBERED) <= now {
                // If somebody else has removed it, that is as good.
                self.records.swap(&name, Some(&content), None)?;
            }
        }
        Ok(())
    }

    fn node(&self, name: &NodeName) -> Result<Option<Node>, AuthorityError> {
        Ok(records::read(&*self.records, &node_name(name))?)
    }

    fn update<T, R, E>(
        &self,
        name: &str,
        change: impl FnMut(Option<T>) -> Result<(Option<T>, R), E>,
    ) -> Result<R, E>
    where
        T: DeserializeOwned + Serialize,
        E: From<RecordError>,
    {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        records::update(&*self.records, name, change)
    }

    fn unusable(&self, error: &rcgen::Error) -> AuthorityError {
        AuthorityError::Key { dir: self.dir.clone(), reason: error.to_string() }
    }
}

/// An expired token is remembered for so long, so that who comes late is told what is wrong.
const TOKEN_REMEMBERED: Duration = Duration::from_secs(24 * 3600);

fn parse_request(request: &[u8]) -> Result<CertificateSigningRequestParams, CertifyError> {
    // Proves that the node has the key. What else the node asks for has no effect.
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
        .map_err(|error| CertifyError::BadRequest(error.to_string()))
}

fn key_fingerprint(request: &CertificateSigningRequestParams) -> Fingerprint {
    certificate::fingerprint(request.public_key.der_bytes())
}

fn node_name(name: &NodeName) -> String {
    format!("{NODES}/{name}")
}

fn token_name(id: &str) -> String {
    format!("{TOKENS}/{id}")
}

/// The token after a node with this key has joined with it.
fn used(
    token: Option<Token>,
    secret: &str,
    key: &Fingerprint,
    now: Timestamp,
) -> Result<Token, CertifyError> {
    // How long the comparison of two hashes takes tells nothing of the secret.
    let is_same = |token: &Token| token.secret == certificate::fingerprint(secret.as_bytes());
    let mut token = token.filter(is_same).ok_or(CertifyError::TokenUnknown)?;
    if token.expires <= now {
        return Err(CertifyError::TokenExpired(token.expires));
    }
    if !token.joined.contains(key) {
        token.uses_left = token.uses_left.checked_sub(1).ok_or(CertifyError::TokenUsed)?;
        token.joined.push(key.clone());
    }
    Ok(token)
}

/// A name that is bound to another key cannot be taken.
fn check_free(known: Option<&Node>, name: &NodeName, key: &Fingerprint) -> Result<(), CertifyError> {
    let bound = known.and_then(|node| node.key.as_ref());
    if bound.is_some_and(|bound| bound != key) {
        return Err(CertifyError::NameTaken(name.clone()));
    }
    Ok(())
}

fn admitted(node: Option<Node>, holder: &Holder) -> Result<Node, CertifyError> {
    let is_admitted = |node: &Node| {
        node.key.as_ref() == Some(&holder.key)
            && node.issued.iter().any(|issued| issued.serial == holder.serial)
    };
    node.filter(is_admitted).ok_or_else(|| CertifyError::Revoked(holder.name.clone()))
}
