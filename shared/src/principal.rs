//! Whom a request acts for, and by what right: a user who logged in, or a key of theirs. The rights are
//! those of the user, narrowed by the key.

use std::sync::Arc;

use crate::{
    api_key::{ApiKey, Scope},
    id::{ApiKeyId, FamilyId, UserId},
    user::{Role, User},
};

/// By what somebody proved who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// An access token of this login.
    Login(FamilyId),
    /// A key.
    Key(Arc<ApiKey>),
}

/// Whom a request acts for. True when it was read; read again at least once a second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The user.
    pub user: Arc<User>,
    /// By what right.
    pub credential: Credential,
}

impl Principal {
    /// The user's id.
    pub fn user_id(&self) -> UserId {
        self.user.id
    }

    /// The key, if it was one.
    pub fn key(&self) -> Option<&ApiKey> {
        match &self.credential {
            Credential::Login(_) => None,
            Credential::Key(key) => Some(key),
        }
    }

    /// The key's id, if it was one.
    pub fn api_key_id(&self) -> Option<ApiKeyId> {
        self.key().map(|key| key.id)
    }

    /// Whether the credential lets its holder act in `scope`.
    pub fn has_scope(&self, scope: Scope) -> bool {
        let by_role = scope != Scope::Admin || self.user.role == Role::Admin;
        by_role && self.key().is_none_or(|key| key.scopes.contains(&scope))
    }
}
