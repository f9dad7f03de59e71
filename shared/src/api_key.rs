//! API keys: `cak_<8 public characters>_<43 secret characters>`. The public part finds the key, a SHA-256
//! of the whole proves it; nothing else of it is kept. With 256 random bits nothing slower is needed.

use std::{
    fmt,
    net::IpAddr,
    str::{self, FromStr},
};

use ipnet::IpNet;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::{
    id::{ApiKeyId, UserId},
    random::push_random,
    time::Timestamp,
};

const BRAND: &str = "cak_";
const PUBLIC: usize = 8;
const SECRET: usize = 43;

/// What a key may be used for. The rights of its owner are the most it can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Send jobs, cancel them, change sessions.
    Chat,
    /// Look at jobs, sessions, usage.
    Read,
    /// What admins may; only for keys of admins.
    Admin,
}

impl Scope {
    /// The word for it in the record and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// A key as the record has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// Whose rights it has.
    pub user_id: UserId,
    /// What its owner calls it.
    pub name: String,
    /// Its public part, with the brand: what may be shown of it.
    pub prefix: String,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// The tools its jobs may use; its owner's when absent.
    pub allowed_tools: Option<Vec<String>>,
    /// Where it may be used from; anywhere when absent.
    pub allowed_ips: Option<Vec<IpNet>>,
    /// Requests in any 60 minutes, within its owner's.
    pub rate_limit_per_hour: Option<u32>,
    /// Jobs that have not ended, at a time, within its owner's.
    pub max_concurrent_jobs: Option<u32>,
    /// When it stops to work.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl ApiKey {
    /// Whether it may be used from `address`. An IPv4 address in the clothes of IPv6 is the IPv4 address.
    pub fn admits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allowed_ips.as_ref().is_none_or(|nets| nets.iter().any(|net| net.contains(&address)))
    }
}

/// The SHA-256 of a whole key: all we keep of it.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// A hash read back from the record; `None` when it is not one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The hash, for the record.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the hash of `key`; takes equally long for every answer.
    pub fn matches(&self, key: &KeyText) -> bool {
        self.0.ct_eq(&key.hash().0).into()
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// A whole key, as its holder shows it. Never kept, never logged.
#[derive(Clone, Debug)]
pub struct KeyText(SecretString);

/// A text that has not the form of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an API key")]
pub struct InvalidKey;

impl KeyText {
    /// A key that nobody has seen before.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut text = String::with_capacity(BRAND.len() + PUBLIC + 1 + SECRET);
        text.push_str(BRAND);
        push_random(&mut text, PUBLIC)?;
        text.push('_');
        push_random(&mut text, SECRET)?;
        Ok(Self(text.into()))
    }

    /// The part that may be shown, and finds the key.
    pub fn prefix(&self) -> &str {
        &self.0.expose_secret()[..BRAND.len() + PUBLIC]
    }

    /// What is kept of it.
    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.0.expose_secret()).into())
    }

    /// The key itself, for the one answer that shows it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether `text` means to be a key, well-formed or not.
    pub fn is_branded(text: &str) -> bool {
        text.starts_with(BRAND)
    }
}

impl FromStr for KeyText {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let (public, secret) = text.strip_prefix(BRAND).and_then(|rest| rest.split_once('_')).ok_or(InvalidKey)?;
        let is_plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric());
        let right = public.len() == PUBLIC && secret.len() == SECRET && is_plain(public) && is_plain(secret);
        if right { Ok(Self(text.into())) } else { Err(InvalidKey) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_prefix_and_proved_by_its_hash() {
        let key = KeyText::generate().expect("random bytes");
        let shown: KeyText = key.expose().parse().expect("a key");

        assert_eq!(key.expose().len(), 56);
        assert_eq!(key.prefix(), &key.expose()[..12]);
        assert!(key.hash().matches(&shown));
        assert!(!key.hash().matches(&KeyText::generate().expect("random bytes")));
        assert!(!format!("{key:?} {:?}", key.hash()).contains(&key.expose()[12..]));
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_none() {
        let key = KeyText::generate().expect("random bytes");
        let key = key.expose();

        for wrong in
            ["", "cak_", &key[1..], &key[..55], &format!("{key}x"), &key.replace("cak_", "sk-_"), &key.replacen(&key[20..21], "é", 1)]
        {
            assert!(wrong.parse::<KeyText>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_ipv4_address_is_the_same_in_the_clothes_of_ipv6() {
        let key = |nets: Option<&[&str]>| ApiKey {
            id: ApiKeyId::new(),
            user_id: UserId::new(),
            name: String::new(),
            prefix: String::new(),
            scopes: Vec::new(),
            allowed_tools: None,
            allowed_ips: nets.map(|nets| nets.iter().map(|net| net.parse().expect("a net")).collect()),
            rate_limit_per_hour: None,
            max_concurrent_jobs: None,
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
            created_at: Timestamp::from_unix_ms(0),
        };
        let home = key(Some(&["10.1.0.0/16", "2001:db8::/32"]));

        for inside in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::7"] {
            assert!(home.admits(inside.parse().expect("an address")), "{inside}");
        }
        for outside in ["10.2.0.1", "::1", "2001:db9::7"] {
            assert!(!home.admits(outside.parse().expect("an address")), "{outside}");
        }
        assert!(key(None).admits("10.2.0.1".parse().expect("an address")));
        assert!(!key(Some(&[])).admits("10.2.0.1".parse().expect("an address")));
    }
}
