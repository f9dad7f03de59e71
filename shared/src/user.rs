//! Accounts: who a job belongs to, and what its owner may use.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{id::UserId, job::NanoUsd, time::Timestamp};

/// The seeded user that the bootstrap key of the environment acts for.
pub const BOOTSTRAP_USER: UserId = UserId::from_uuid(Uuid::from_u128(1));

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
