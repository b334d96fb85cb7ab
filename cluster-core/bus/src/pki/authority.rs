//! The cluster's certificate authority in a directory of the master.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesonet_model::{AgentId, ClusterId, Timestamp};
use rcgen::{CertificateSigningRequestParams, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use thiserror::Error;

use super::certificate::{self, CertificateError, Fingerprint, Holder, NoRandomness};
use super::files::{self, FileError};
use super::records::{self, Issued, Node, RecordError, Token};
use crate::{JoinToken, NodeName, Role, TokenTerms, clock};

/// Nodes that may join with one token.
pub const TOKEN_USES_MAX: u32 = 10_000;

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.pem";
const LOCK_FILE: &str = "lock";
const REVOCATIONS_FILE: &str = "revocations";
const NODES_DIR: &str = "nodes";
const TOKENS_DIR: &str = "tokens";

/// The authority: its key and certificate, the nodes that it knows and the tokens that it has given out.
///
/// Everything is in files below one directory, read anew and locked for each operation, so a command may work on them
/// beside a running master.
#[derive(Debug, Clone)]
pub struct Authority {
    dir: PathBuf,
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    issuer: Arc<Issuer<'static, KeyPair>>,
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
    #[error("the certificate of {0} is revoked")]
    Revoked(NodeName),
    #[error("the certificate request cannot be used: {0}")]
    BadRequest(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
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
        for folder in [dir.to_owned(), dir.join(NODES_DIR), dir.join(TOKENS_DIR)] {
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

    /// Takes up the authority of a directory.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn load(dir: &Path) -> Result<Self, AuthorityError> {
        let unusable = |reason: String| AuthorityError::Key { dir: dir.to_owned(), reason };
        let key = KeyPair::from_pem(&files::read(&dir.join(KEY_FILE))?)
            .map_err(|error| unusable(error.to_string()))?;
        let pem = files::read(&dir.join(CERTIFICATE_FILE))?;
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(error.to_string()))?;
        let cluster = certificate::authority_cluster(&certificate)?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { dir: dir.to_owned(), cluster, certificate, issuer: Arc::new(issuer) })
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
        let _lock = self.lock()?;
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
        records::write(self.token_file(&token.id), &record)?;
        Ok(token)
    }

    /// Declares every certificate of a node void and frees its name. Its connections end within a second.
    ///
    /// # Errors
    /// When there is no such node, or it cannot be kept.
    pub fn revoke(&self, name: &NodeName) -> Result<(), AuthorityError> {
        let _lock = self.lock()?;
        let mut node = self.node(name)?.ok_or_else(|| AuthorityError::UnknownNode(name.clone()))?;
        node.key = None;
        node.agent = None;
        node.revoked.append(&mut node.issued);
        records::write(self.node_file(name), &node)?;
        // Whatever it holds, it differs from before.
        let mark = certificate::random::<16>()?;
        files::write(&self.dir.join(REVOCATIONS_FILE), super::hex::encode(&mark).as_bytes())?;
        Ok(())
    }

    /// Every node that has joined, by name.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn nodes(&self) -> Result<Vec<NodeRecord>, AuthorityError> {
        let _lock = self.lock()?;
        let mut nodes = Vec::new();
        for path in json_files(&self.dir.join(NODES_DIR))? {
            let Some(node) = records::read::<Node>(path)? else { continue };
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
        let _lock = self.lock()?;
        let now = clock::now();
        let mut tokens = Vec::new();
        for path in json_files(&self.dir.join(TOKENS_DIR))? {
            let id = path.file_stem().map(|id| id.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(Token { expires, uses_left, roles, .. }) = records::read(path)? else { continue };
            if expires > now && uses_left > 0 {
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
        let _lock = self.lock()?;
        let path = self.token_file(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(unknown()),
            removed => Ok(removed.map_err(|source| FileError { action: "remove", path, source })?),
        }
    }

    /// The authority's own certificate.
    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Something that differs after each revocation.
    pub(crate) fn revocations(&self) -> Result<Option<String>, FileError> {
        files::read_if_present(&self.dir.join(REVOCATIONS_FILE))
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
        let _lock = self.lock()?;
        let now = clock::now();
        let mut token = self.token(token_id, secret)?;
        if token.expires <= now {
            return Err(CertifyError::TokenExpired(token.expires));
        }
        let is_repeated = token.joined.contains(&key);
        if !is_repeated && token.uses_left == 0 {
            return Err(CertifyError::TokenUsed);
        }
        let known = self.node(name).map_err(AuthorityError::from)?;
        if known.as_ref().and_then(|node| node.key.as_ref()).is_some_and(|bound| *bound != key) {
            return Err(CertifyError::NameTaken(name.clone()));
        }
        if !is_repeated {
            token.uses_left -= 1;
            token.joined.push(key.clone());
            records::write(self.token_file(token_id), &token).map_err(AuthorityError::from)?;
        }
        let node = Node {
            name: name.clone(),
            key: Some(key),
            roles: token.roles,
            issued: known.as_ref().map(|node| node.issued.clone()).unwrap_or_default(),
            revoked: known.as_ref().map(|node| node.revoked.clone()).unwrap_or_default(),
            agent: known.and_then(|node| node.agent),
        };
        self.issue(node, &request, now, lifetime)
    }

    /// Gives a node that is in a new certificate for the same key.
    pub(crate) fn renew(
        &self,
        holder: &Holder,
        request: &[u8],
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, CertifyError> {
        let request = parse_request(request)?;
        let _lock = self.lock()?;
        let node = self.admitted(holder)?;
        if key_fingerprint(&request) != holder.key {
            return Err(CertifyError::NameTaken(holder.name.clone()));
        }
        self.issue(node, &request, clock::now(), lifetime)
    }

    /// Whether a node whose certificate is genuine is still let in, and the agent that it runs.
    pub(crate) fn check(&self, holder: &Holder) -> Result<Option<AgentId>, CertifyError> {
        let _lock = self.lock()?;
        self.admitted(holder).map(|node| node.agent)
    }

    /// Remembers the agent that runs on a node.
    pub(crate) fn bind_agent(&self, name: &NodeName, agent: &AgentId) -> Result<(), AuthorityError> {
        let _lock = self.lock()?;
        let Some(mut node) = self.node(name)? else { return Ok(()) };
        node.agent = Some(agent.clone());
        Ok(records::write(self.node_file(name), &node)?)
    }

    fn admitted(&self, holder: &Holder) -> Result<Node, CertifyError> {
        let node = self.node(&holder.name).map_err(AuthorityError::from)?;
        let is_admitted = |node: &Node| {
            node.key.as_ref() == Some(&holder.key)
                && node.issued.iter().any(|issued| issued.serial == holder.serial)
        };
        node.filter(is_admitted).ok_or_else(|| CertifyError::Revoked(holder.name.clone()))
    }

    fn issue(
        &self,
        mut node: Node,
        request: &CertificateSigningRequestParams,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, CertifyError> {
        let certificate = self.sign(&request.public_key, &node.name, &node.roles, lifetime)?;
        let holder = Holder::of(&certificate).map_err(AuthorityError::from)?;
        node.issued.retain(|issued| issued.expires > now);
        node.revoked.retain(|revoked| revoked.expires > now);
        node.issued.push(Issued { serial: holder.serial, expires: holder.not_after });
        records::write(self.node_file(&node.name), &node).map_err(AuthorityError::from)?;
        Ok(certificate)
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

    fn token(&self, id: &str, secret: &str) -> Result<Token, CertifyError> {
        if !JoinToken::is_id(id) {
            return Err(CertifyError::TokenUnknown);
        }
        let token: Option<Token> = records::read(self.token_file(id)).map_err(AuthorityError::from)?;
        // How long the comparison of two hashes takes tells nothing of the secret.
        let is_same = |token: &Token| token.secret == certificate::fingerprint(secret.as_bytes());
        token.filter(is_same).ok_or(CertifyError::TokenUnknown)
    }

    fn remove_expired_tokens(&self, now: Timestamp) -> Result<(), AuthorityError> {
        for path in json_files(&self.dir.join(TOKENS_DIR))? {
            let token: Option<Token> = records::read(path.clone())?;
            if token.is_some_and(|token| token.expires.plus(TOKEN_REMEMBERED) <= now) {
                fs::remove_file(&path).map_err(|source| FileError { action: "remove", path, source })?;
            }
        }
        Ok(())
    }

    fn node(&self, name: &NodeName) -> Result<Option<Node>, RecordError> {
        records::read(self.node_file(name))
    }

    fn node_file(&self, name: &NodeName) -> PathBuf {
        self.dir.join(NODES_DIR).join(format!("{name}.json"))
    }

    fn token_file(&self, id: &str) -> PathBuf {
        self.dir.join(TOKENS_DIR).join(format!("{id}.json"))
    }

    /// Held while files are used, also against other processes.
    fn lock(&self) -> Result<File, AuthorityError> {
        let path = self.dir.join(LOCK_FILE);
        let lock = || {
            let file = File::options().create(true).append(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|source: io::Error| FileError { action: "lock", path: path.clone(), source }.into())
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

fn json_files(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let read = || {
        let entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        let paths = entries.into_iter().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|end| end == "json")).collect())
    };
    read().map_err(|source: io::Error| FileError { action: "list", path: dir.to_owned(), source })
}
