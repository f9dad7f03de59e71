//! Passwords, proved by Argon2id (RFC 9106). One proof takes a core for some 20 ms: they run beside the requests, few
//! at a time, and who finds no room soon is told to come again. A login that cannot be right costs as much as one
//! that can.

use std::{num::NonZero, sync::Arc, thread, time::Duration};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{self, PasswordHasher as _, PasswordVerifier as _, phc},
};
use poem_openapi::registry::MetaSchema;
use serde::Deserialize;
use shared::{
    config::{ExposeSecret as _, SecretString},
    user::PasswordHash,
};
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use crate::{
    contract::{Schema, TEXT_PATTERN},
    error::{ApiError, Code},
};

/// The fewest characters of a password.
pub const MIN_CHARS: usize = 12;
/// The most characters of a password.
pub const MAX_CHARS: usize = 256;

/// How long to wait for room.
const PATIENCE: Duration = Duration::from_secs(5);

/// The parameters that OWASP recommends.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// The hash of a password that nobody has, made with the parameters above.
const NOBODYS: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGhhcyB0aGlz$MJ0v0mJ4H9nVqQ7m2m3q1d3yJYy0b5s4dQv8kq1m2n4";

/// A password as somebody typed it: neither trimmed nor normalised.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Password(SecretString);

impl Password {
    /// The password `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// Whether an account may have it.
    pub fn may_be_chosen(&self) -> bool {
        (MIN_CHARS..=MAX_CHARS).contains(&self.chars())
    }

    /// Whether it may be somebody's. Longer ones are not even hashed.
    pub fn may_be_right(&self) -> bool {
        self.chars() <= MAX_CHARS
    }

    fn chars(&self) -> usize {
        // One beyond the bound tells enough.
        self.0.expose_secret().chars().take(MAX_CHARS + 1).count()
    }
}

impl Schema for Password {
    fn schema() -> MetaSchema {
        MetaSchema {
            min_length: Some(MIN_CHARS),
            max_length: Some(MAX_CHARS),
            pattern: Some(TEXT_PATTERN.to_owned()),
            ..MetaSchema::new_with_format("string", "password")
        }
    }
}

/// Hashes passwords and proves them.
#[derive(Clone)]
pub struct Passwords {
    room: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        // The other half of the cores is for those who are logged in.
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self { room: Arc::new(Semaphore::new((cores / 2).max(1))) }
    }
}

impl Passwords {
    /// The hash to keep of `password`.
    pub async fn hash(&self, password: &Password) -> Result<PasswordHash, ApiError> {
        let password = password.clone();
        let hashed = self.beside_the_requests(move || argon2().hash_password(password.0.expose_secret().as_bytes())).await?;
        hashed.map(|hash| PasswordHash::new(hash.to_string())).map_err(|error| ApiError::internal(error.to_string()))
    }

    /// Whether `password` is the one behind `hash`; takes equally long where there is none.
    pub async fn verify(&self, password: &Password, hash: Option<&PasswordHash>) -> Result<bool, ApiError> {
        let (password, known) = (password.clone(), hash.is_some());
        let hash =
            phc::PasswordHash::new(hash.map_or(NOBODYS, PasswordHash::expose)).map_err(|error| ApiError::internal(error.to_string()))?;
        let verified = self.beside_the_requests(move || argon2().verify_password(password.0.expose_secret().as_bytes(), &hash)).await?;
        match verified {
            Ok(()) => Ok(known),
            Err(password_hash::Error::PasswordInvalid) => Ok(false),
            Err(error) => Err(ApiError::internal(error.to_string())),
        }
    }

    /// Do `work` where it holds up nobody. Once begun it goes on, and keeps its room, even if the request is gone.
    async fn beside_the_requests<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
        let busy = |_| ApiError::unavailable(Code::Unavailable, "too many logins at a time: try again", 5);
        let room = timeout(PATIENCE, self.room.clone().acquire_owned()).await.map_err(busy)?.map_err(ApiError::internal)?;
        let done = spawn_blocking(move || {
            let done = work();
            drop(room);
            done
        });
        done.await.map_err(ApiError::internal)
    }
}

/// Whether `hash` was made with other parameters than are used today.
pub fn is_outdated(hash: &PasswordHash) -> bool {
    let parsed = phc::PasswordHash::new(hash.expose());
    parsed.is_ok_and(|hash| hash.algorithm != Algorithm::Argon2id.ident() || Params::try_from(&hash).ok() != Some(params()))
}

fn argon2() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params())
}

fn params() -> Params {
    Params::new(MEMORY_KIB, PASSES, LANES, Some(Params::DEFAULT_OUTPUT_LEN)).expect("within the bounds of Argon2")
}

#[cfg(test)]
mod tests {

    use super::*;

    #[tokio::test]
    async fn a_password_is_proved_by_its_hash_and_by_none_else() {
        let passwords = Passwords::default();
        let right = Password::new("correct horse battery");
        let hash = passwords.hash(&right).await.expect("hashed");

        assert!(hash.expose().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.expose());
        assert!(passwords.verify(&right, Some(&hash)).await.expect("verified"));
        for wrong in ["correct horse batterz", " correct horse battery", "correct horse battery ", "Correct horse battery", ""] {
            assert!(!passwords.verify(&Password::new(wrong), Some(&hash)).await.expect("verified"), "{wrong:?}");
        }
        assert!(!passwords.verify(&right, None).await.expect("verified"));
        assert_ne!(passwords.hash(&right).await.expect("hashed").expose(), hash.expose(), "each has a salt of its own");
    }

    #[test]
    fn nobodys_hash_costs_what_all_others_cost() {
        assert!(!is_outdated(&PasswordHash::new(NOBODYS.to_owned())));

        let cheap = "$argon2id$v=19$m=8,t=1,p=1$bm9ib2R5IGhhcyB0aGlz$MJ0v0mJ4H9nVqQ7m2m3q1d3yJYy0b5s4dQv8kq1m2n4";
        assert!(is_outdated(&PasswordHash::new(cheap.to_owned())));
    }

    #[tokio::test]
    async fn nobody_waits_long_for_room() {
        let passwords = Passwords { room: Arc::new(Semaphore::new(0)) };
        tokio::time::pause();
        let begun = tokio::time::Instant::now();

        let error = passwords.hash(&Password::new("correct horse battery")).await.expect_err("no room");

        assert_eq!((error.code(), error.retry_after_secs()), (Code::Unavailable, Some(5)));
        assert!((PATIENCE..2 * PATIENCE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_password_has_so_many_characters_not_bytes() {
        for right in ["x".repeat(12), "é".repeat(12), "💡".repeat(256), " ".repeat(12)] {
            assert!(Password::new(right.clone()).may_be_chosen(), "{right}");
        }
        for wrong in [String::new(), "x".repeat(11), "é".repeat(11), "x".repeat(257)] {
            assert!(!Password::new(wrong.clone()).may_be_chosen(), "{wrong}");
        }
        assert!(!format!("{:?}", Password::new("correct horse battery")).contains("horse"));
    }
}
