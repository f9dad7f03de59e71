//! The door to API keys: make, list, revoke. A key's text is answered once, when it is made.

use ipnet::IpNet;
use serde_json::json;

use crate::{
    Error, Result,
    api_key::{ApiKey, KeyText, Scope},
    audit::{Action, By},
    changes,
    db::{self, api_keys as table, audit, users},
    id::{ApiKeyId, UserId},
    store::Store,
    time::Timestamp,
};

/// What can be done with API keys.
#[derive(Clone)]
pub struct ApiKeys {
    store: Store,
}

/// A key to be.
#[derive(Clone, Debug)]
pub struct NewApiKey {
    /// Whose rights it has.
    pub user_id: UserId,
    /// What its owner calls it.
    pub name: String,
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
}

impl ApiKeys {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// Make a key for a user who is there.
    pub async fn create(&self, new: NewApiKey, by: &By) -> Result<(ApiKey, KeyText)> {
        let transaction = self.store.db().begin().await?;
        let nobody = || Error::Internal { what: "could not make an API key", source: "its user is not there".into() };
        users::hold(&transaction, new.user_id).await?.ok_or_else(nobody)?;
        // Two public parts of 62⁸ are the same by chance about never.
        let (key, text) = loop {
            let text = generate()?;
            if let Some(key) = table::insert(&transaction, &new, &text).await? {
                break (key, text);
            }
        };
        let detail = json!({ "user": key.user_id, "scopes": key.scopes });
        audit::insert(&transaction, by, Action::KeyCreate, Some(key.id.to_string()), Some(detail)).await?;
        db::commit(transaction).await?;
        Ok((key, text))
    }

    /// The keys of `user`, newest first, the revoked ones too.
    pub async fn list(&self, user: UserId, before: Option<ApiKeyId>, limit: u32) -> Result<Vec<ApiKey>> {
        table::list(self.store.db(), user, before, limit).await
    }

    /// A key, whoever it belongs to.
    pub async fn find(&self, id: ApiKeyId) -> Result<Option<ApiKey>> {
        table::find(self.store.db().pool(), id).await
    }

    /// Revoke a key of `owner`, or of anybody. False when it is not there. Idempotent.
    pub async fn revoke(&self, id: ApiKeyId, owner: Option<UserId>, by: &By) -> Result<bool> {
        let transaction = self.store.db().begin().await?;
        let Some(key) = table::find(&transaction, id).await? else { return Ok(false) };
        if owner.is_some_and(|owner| owner != key.user_id) {
            return Ok(false);
        }
        if table::revoke(&transaction, id).await? {
            let detail = json!({ "user": key.user_id });
            audit::insert(&transaction, by, Action::KeyRevoke, Some(id.to_string()), Some(detail)).await?;
        }
        db::commit(transaction).await?;
        changes::announce(&self.store, key.user_id).await;
        Ok(true)
    }
}

fn generate() -> Result<KeyText> {
    KeyText::generate().map_err(|source| Error::Internal { what: "could not make an API key", source: source.into() })
}
