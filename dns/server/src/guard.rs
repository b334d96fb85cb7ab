//! Who may ask what, and how the server and its clients know each other.

use std::net::IpAddr;
use std::time::SystemTime;

use hickory_proto::op::Edns;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use thiserror::Error;

use crate::cookies::{Cookie, Cookies, Malformed};
use crate::limiter::Limiter;
use crate::policy::{Policy, PolicyConfig, PolicyError};

/// Numbers of options (IANA registry of EDNS0 option codes).
const NSID: u16 = 3;
const COOKIE: u16 = 10;

/// There is no guard.
#[derive(Debug, Error)]
pub enum GuardError {
    /// The policy is wrong.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// There is no secret for cookies.
    #[error("the system has no randomness for the secret of DNS cookies")]
    NoRandomness,
}

/// Who may ask what.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) policy: Policy,
    pub(crate) limiter: Option<Limiter>,
    cookies: Cookies,
    identity: Option<String>,
}

impl Guard {
    pub(crate) fn new(config: &PolicyConfig) -> Result<Self, GuardError> {
        Ok(Self {
            policy: Policy::new(config)?,
            limiter: config.rate_max.map(Limiter::new),
            cookies: Cookies::new().ok_or(GuardError::NoRandomness)?,
            identity: config.identity.clone(),
        })
    }

    /// The name of this server for who asks.
    pub(crate) fn identity(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// The cookie of a query, if it has one.
    pub(crate) fn cookie(&self, asked: Option<&Edns>, client: IpAddr) -> Result<Option<Cookie>, Malformed> {
        match asked.and_then(|asked| asked.option(EdnsCode::Cookie)) {
            Some(EdnsOption::Unknown(COOKIE, option)) => {
                self.cookies.read(option, client, SystemTime::now()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Puts the server's name and its cookie into an answer, if the query asks for them.
    pub(crate) fn identify(&self, asked: &Edns, answer: &mut Edns, cookie: Option<Cookie>, client: IpAddr) {
        let options = answer.options_mut();
        if let Some(cookie) = cookie {
            let cookie = self.cookies.answer(cookie, client, SystemTime::now());
            options.insert(EdnsOption::Unknown(COOKIE, cookie));
        }
        if let Some(identity) = &self.identity
            && asked.option(EdnsCode::NSID).is_some()
        {
            options.insert(EdnsOption::Unknown(NSID, identity.as_bytes().to_vec()));
        }
    }
}
