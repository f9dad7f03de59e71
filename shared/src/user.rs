//! Accounts: who a job belongs to, and what its owner may use.

use std::str::FromStr;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use crate::{id::UserId, job::NanoUsd, time::Timestamp};

/// What an account is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Its own jobs.
    #[default]
    User,
    /// Everybody's.
    Admin,
}

impl Role {
    /// The word for it in the record and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Admin => "admin",
        }
    }
}

/// A text that names no role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a role")]
pub struct InvalidRole;

impl FromStr for Role {
    type Err = InvalidRole;

    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        [Self::User, Self::Admin].into_iter().find(|role| role.as_str() == text).ok_or(InvalidRole)
    }
}

/// How much one account may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserLimits {
    /// Requests in any 60 minutes; the operator's default when absent.
    pub rate_limit_per_hour: Option<u32>,
    /// Jobs that have not ended, at a time; as many as the queue takes when absent.
    pub max_concurrent_jobs: Option<u32>,
    /// What its jobs of one UTC day may cost; no end when absent.
    pub daily_budget: Option<NanoUsd>,
    /// How many turns it has for one of the others while jobs wait for a worker; 1 when absent.
    pub queue_weight: Option<u32>,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// The address it logs in with, as it was given.
    pub email: String,
    /// What its owner likes to be called.
    pub name: Option<String>,
    /// What it is for.
    pub role: Role,
    /// Whether it may do nothing at all.
    pub disabled: bool,
    /// How much it may use.
    pub limits: UserLimits,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last logged in.
    pub last_login_at: Option<Timestamp>,
}

impl User {
    /// Whether it may administer the service.
    pub fn is_active_admin(&self) -> bool {
        self.role == Role::Admin && !self.disabled
    }
}

/// An address to log in with: the dot-string form of RFC 5321, section 4.1.2, in ASCII. Its case is
/// kept, and means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email(String);

/// A text that is no email address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an email address")]
pub struct InvalidEmail;

impl Email {
    const LONGEST: usize = 254;
    const LONGEST_LOCAL: usize = 64;
    const LONGEST_LABEL: usize = 63;

    /// The address, as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What tells it from others.
    pub fn folded(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl FromStr for Email {
    type Err = InvalidEmail;

    fn from_str(text: &str) -> Result<Self, InvalidEmail> {
        let (local, domain) = text.split_once('@').ok_or(InvalidEmail)?;
        let is_short = text.len() <= Self::LONGEST && local.len() <= Self::LONGEST_LOCAL;
        if is_short && local.split('.').all(is_atom) && domain.split('.').all(is_label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidEmail)
        }
    }
}

fn is_atom(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&b))
}

fn is_label(text: &str) -> bool {
    let is_plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    !text.is_empty() && text.len() <= Email::LONGEST_LABEL && is_plain && !text.starts_with('-') && !text.ends_with('-')
}

/// A password as the record has it: a PHC string, with the algorithm, its cost and the salt.
#[derive(Clone, Debug)]
pub struct PasswordHash(SecretString);

impl PasswordHash {
    /// A hash that was just made, or read back.
    pub fn new(phc: String) -> Self {
        Self(phc.into())
    }

    /// The PHC string, to verify against.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_has_a_name_and_a_place() {
        let (longest_local, longest_label) = ("a".repeat(64), "b".repeat(63));
        let longest = format!("{longest_local}@{longest_label}.{longest_label}.{}", "c".repeat(254 - 65 - 128));
        for right in ["a@b", "admin@localhost", "First.Last+tag@Example.co.uk", "o'brien_{x}~!#$%&*/=?^`|-@1-2.example", longest.as_str()] {
            assert_eq!(right.parse::<Email>().map(|email| email.as_str().to_owned()).as_deref(), Ok(right));
        }
        for wrong in [
            "",
            "@",
            "a",
            "a@",
            "@b",
            "a@b@c",
            " a@b",
            "a@b ",
            "a b@c",
            ".a@b",
            "a.@b",
            "a..b@c",
            "a@b.",
            "a@.b",
            "a@b..c",
            "a@-b",
            "a@b-",
            "\"a\"@b",
            "a@[127.0.0.1]",
            "a@b_c",
            "ä@b",
            "a@ä",
            "a\0@b",
            "a@b\n",
            "<a@b>",
        ] {
            assert_eq!(wrong.parse::<Email>(), Err(InvalidEmail), "{wrong:?}");
        }
        for long in [format!("{longest}c"), format!("a{longest_local}@b"), format!("a@b{longest_label}")] {
            assert_eq!(long.parse::<Email>(), Err(InvalidEmail), "{long:?}");
        }
    }

    #[test]
    fn a_password_hash_does_not_print() {
        let hash = PasswordHash::new("$argon2id$made-up".to_owned());

        assert_eq!(hash.expose(), "$argon2id$made-up");
        assert!(!format!("{hash:?}").contains("made-up"));
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_refused(text in ".*") {
            if let Ok(email) = text.parse::<Email>() {
                prop_assert!(email.as_str() == text && text.is_ascii() && text.len() <= 254 && text.matches('@').count() == 1);
            }
        }

        #[test]
        fn the_case_of_an_address_means_nothing(local in "[A-Za-z0-9+-]{1,64}", domain in "[A-Za-z]{1,20}(\\.[A-Za-z]{1,20}){0,3}") {
            let email: Email = format!("{local}@{domain}").parse().expect("an address");
            let shouted: Email = email.as_str().to_ascii_uppercase().parse().expect("an address");

            prop_assert_eq!(email.folded(), shouted.folded());
        }
    }
}
