//! DNS cookies (RFC 7873): a client that sends back what it was given has the address that it says.
//!
//! Server cookies have the form of RFC 9018. Their secret changes every day: it follows from one that is drawn at the
//! start and from the day in the cookie, so that yesterday's cookies stay good for as long as their age allows. Time is
//! given.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::hmac;
use ring::rand::SystemRandom;

/// Octets of a client's cookie, and of the shortest and longest ones with a server's (RFC 7873 §4).
const CLIENT_LENGTH: usize = 8;
const WHOLE_LENGTH_MIN: usize = 16;
const WHOLE_LENGTH_MAX: usize = 40;

/// Octets of the server's cookies made here: version, reserved, time and hash (RFC 9018 §4).
const SERVER_LENGTH: usize = 16;

/// Version 1 with its reserved octets.
const VERSION: [u8; 4] = [1, 0, 0, 0];

/// How old a cookie may be, and how far in the future its time (RFC 9018 §4.3).
const AGE_MAX: Duration = Duration::from_secs(3600);
const FUTURE_MAX: Duration = Duration::from_secs(300);

/// How long a secret is used.
const SECRET_SECONDS: u32 = 86_400;

/// The cookie of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie {
    client: [u8; CLIENT_LENGTH],
    /// Whether the client has sent a good server cookie.
    pub(crate) is_good: bool,
}

/// A cookie has a length that none has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Makes and checks cookies.
pub(crate) struct Cookies {
    key: hmac::Key,
}

impl Cookies {
    /// With a secret of its own. Nothing if the system has no randomness.
    pub(crate) fn new() -> Option<Self> {
        Some(Self { key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()? })
    }

    /// Reads a query's cookie.
    pub(crate) fn read(&self, option: &[u8], client: IpAddr, now: SystemTime) -> Result<Cookie, Malformed> {
        let own = *option.first_chunk().ok_or(Malformed)?;
        match option.len() {
            CLIENT_LENGTH => Ok(Cookie { client: own, is_good: false }),
            WHOLE_LENGTH_MIN..=WHOLE_LENGTH_MAX => {
                let is_good = self.is_good(own, &option[CLIENT_LENGTH..], client, now);
                Ok(Cookie { client: own, is_good })
            }
            _ => Err(Malformed),
        }
    }

    /// The answer's cookie.
    pub(crate) fn answer(&self, cookie: Cookie, client: IpAddr, now: SystemTime) -> Vec<u8> {
        let server = server_cookie(&self.secret(seconds(now)), cookie.client, client, seconds(now));
        [cookie.client.as_slice(), &server].concat()
    }

    fn is_good(&self, own: [u8; CLIENT_LENGTH], server: &[u8], client: IpAddr, now: SystemTime) -> bool {
        let Some([version @ .., t0, t1, t2, t3]) = server.first_chunk::<8>() else { return false };
        let made = u32::from_be_bytes([*t0, *t1, *t2, *t3]);
        // Serial number arithmetic: the time wraps in 2106.
        let age = seconds(now).wrapping_sub(made) as i32;
        let is_recent =
            i64::from(age) <= AGE_MAX.as_secs() as i64 && i64::from(age) >= -(FUTURE_MAX.as_secs() as i64);
        let expected = server_cookie(&self.secret(made), own, client, made);
        let differs = server.len() != SERVER_LENGTH
            || server.iter().zip(expected).fold(0, |differs, (one, other)| differs | (one ^ other)) != 0;
        *version == VERSION && is_recent && !differs
    }

    /// The secret of a time.
    fn secret(&self, seconds: u32) -> [u8; 16] {
        let tag = hmac::sign(&self.key, &(seconds / SECRET_SECONDS).to_be_bytes());
        let mut secret = [0; 16];
        secret.iter_mut().zip(tag.as_ref()).for_each(|(octet, tag)| *octet = *tag);
        secret
    }
}

/// Without the secret.
impl fmt::Debug for Cookies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cookies").finish_non_exhaustive()
    }
}

/// The lower 32 bits of the time.
fn seconds(now: SystemTime) -> u32 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    (since & u64::from(u32::MAX)) as u32
}

/// A server cookie (RFC 9018 §4).
fn server_cookie(
    secret: &[u8; 16],
    own: [u8; CLIENT_LENGTH],
    client: IpAddr,
    seconds: u32,
) -> [u8; SERVER_LENGTH] {
    let mut input = Vec::with_capacity(32);
    input.extend_from_slice(&own);
    input.extend_from_slice(&VERSION);
    input.extend_from_slice(&seconds.to_be_bytes());
    match client.to_canonical() {
        IpAddr::V4(client) => input.extend_from_slice(&client.octets()),
        IpAddr::V6(client) => input.extend_from_slice(&client.octets()),
    }
    let hash = siphash_2_4(secret, &input).to_le_bytes();
    let mut cookie = [0; SERVER_LENGTH];
    cookie[..4].copy_from_slice(&VERSION);
    cookie[4..8].copy_from_slice(&seconds.to_be_bytes());
    cookie[8..].copy_from_slice(&hash);
    cookie
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012).
fn siphash_2_4(key: &[u8; 16], input: &[u8]) -> u64 {
    let word = |octets: &[u8]| octets.iter().rev().fold(0_u64, |word, octet| word << 8 | u64::from(*octet));
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut state = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let mut absorb = |word: u64, rounds: usize| {
        state[3] ^= word;
        (0..rounds).for_each(|_| sip_round(&mut state));
        state[0] ^= word;
    };
    let chunks = input.chunks_exact(8);
    let last = word(chunks.remainder()) | (input.len() as u64) << 56;
    chunks.for_each(|chunk| absorb(word(chunk), 2));
    absorb(last, 2);
    state[2] ^= 0xff;
    (0..4).for_each(|_| sip_round(&mut state));
    state.into_iter().fold(0, |hash, word| hash ^ word)
}

fn sip_round(state: &mut [u64; 4]) {
    let [v0, v1, v2, v3] = state;
    *v0 = v0.wrapping_add(*v1);
    *v1 = v1.rotate_left(13) ^ *v0;
    *v0 = v0.rotate_left(32);
    *v2 = v2.wrapping_add(*v3);
    *v3 = v3.rotate_left(16) ^ *v2;
    *v0 = v0.wrapping_add(*v3);
    *v3 = v3.rotate_left(21) ^ *v0;
    *v2 = v2.wrapping_add(*v1);
    *v1 = v1.rotate_left(17) ^ *v2;
    *v2 = v2.rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// The vectors of the paper's reference implementation: the key is 00 to 0f, the inputs 00, 01, 02 and so on.
    #[test]
    fn siphash_is_that_of_its_authors() {
        let key: [u8; 16] = std::array::from_fn(|at| at as u8);
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(siphash_2_4(&key, &[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash_2_4(&key, &input), 0xa129_ca61_49be_45e5);
    }

    /// RFC 9018 appendix A.1.
    #[test]
    fn server_cookies_are_those_of_the_rfc() {
        let secret = 0xe5e9_73e5_a6b2_a43f_48e7_dc84_9e37_bfcf_u128.to_be_bytes();
        let own = 0x2464_c4ab_cf10_c957_u64.to_be_bytes();
        let cookie = server_cookie(&secret, own, [198, 51, 100, 100].into(), 1_559_731_985);
        assert_eq!(u128::from_be_bytes(cookie), 0x0100_0000_5cf7_9f11_1f81_30c3_eee2_9480);
    }

    #[test]
    fn a_cookie_is_good_for_its_client_and_an_hour() {
        let cookies = Cookies::new().expect("randomness");
        let client: IpAddr = [192, 0, 2, 1].into();
        // Just before the secret changes.
        let start = 86_400 * 20_000 - 1;
        let first = cookies.read(&[7; 8], client, at(start)).expect("a cookie");
        assert!(!first.is_good);
        let given = cookies.answer(first, client, at(start));
        let is_good =
            |option: &[u8], client, now| cookies.read(option, client, at(now)).expect("a cookie").is_good;
        for now in [start, start + 3600, start - 300] {
            assert!(is_good(&given, client, now), "{now}");
        }
        assert!(!is_good(&given, client, start + 3601) && !is_good(&given, client, start - 301));
        assert!(!is_good(&given, [192, 0, 2, 2].into(), start));
        for at in 0..given.len() {
            let mut forged = given.clone();
            forged[at] ^= 1;
            assert!(!is_good(&forged, client, start), "octet {at}");
        }
        assert!(!is_good(&given[..20], client, start));
        for length in [0, 7, 9, 15, 41] {
            assert_eq!(cookies.read(&vec![7; length], client, at(start)), Err(Malformed), "{length}");
        }
    }
}
