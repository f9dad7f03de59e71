//! The door to accounts: make, find, change, delete. What changes one writes its audit entry in the same
//! transaction, and is heard of by every process afterwards.

use sea_orm::DatabaseTransaction;
use serde_json::json;

use crate::{
    Error, Result,
    audit::{Action, By},
    changes,
    db::{self, api_keys, audit, jobs, logins, sessions, users as table},
    ending,
    id::{FamilyId, UserId},
    job::NanoUsd,
    store::Store,
    user::{Email, PasswordHash, Role, User, UserLimits},
};

/// The most rows of one look; the rest waits for the leader's next round.
const BATCH: u32 = 500;

/// What can be done with accounts.
#[derive(Clone)]
pub struct Users {
    store: Store,
}

/// An account to be.
#[derive(Clone, Debug)]
pub struct NewUser {
    /// The address to log in with.
    pub email: Email,
    /// What its owner likes to be called.
    pub name: Option<String>,
    /// What proves its owner.
    pub password: PasswordHash,
    /// What it is for.
    pub role: Role,
    /// How much it may use.
    pub limits: UserLimits,
}

/// What to change of an account; what is absent stays.
#[derive(Clone, Debug, Default)]
pub struct UserChange {
    /// The address to log in with.
    pub email: Option<Email>,
    /// What its owner likes to be called.
    pub name: Option<Option<String>>,
    /// What it is for.
    pub role: Option<Role>,
    /// Whether it may do nothing at all.
    pub disabled: Option<bool>,
    /// Requests in any 60 minutes.
    pub rate_limit_per_hour: Option<Option<u32>>,
    /// Jobs that have not ended, at a time.
    pub max_concurrent_jobs: Option<Option<u32>>,
    /// Its turns for one of the others; none for 1.
    pub queue_weight: Option<Option<u32>>,
    /// What its jobs of one UTC day may cost.
    pub daily_budget: Option<Option<NanoUsd>>,
    /// What proves its owner from here on: every login ends but `keep_family`.
    pub password: Option<PasswordHash>,
    /// What proved the owner who wants this: where it is no longer what does, nothing changes.
    pub proof: Option<PasswordHash>,
    /// The login that outlives a new password.
    pub keep_family: Option<FamilyId>,
}

/// Which accounts to list, newest first.
#[derive(Clone, Debug)]
pub struct UserFilter {
    /// Only those with this in their address or name.
    pub query: Option<String>,
    /// Only those older than this one.
    pub before: Option<UserId>,
    /// The most to answer.
    pub limit: u32,
}

impl Users {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// Make an account. Fails with [`Error::EmailTaken`].
    pub async fn create(&self, new: NewUser, by: &By) -> Result<User> {
        let transaction = self.store.db().begin().await?;
        let user = insert(&transaction, &new, by).await?;
        db::commit(transaction).await?;
        Ok(user)
    }

    /// Make the first admin: of any number of callers at once, one. `None` when there is an admin.
    /// Fails with [`Error::EmailTaken`].
    pub async fn create_first_admin(&self, new: NewUser, by: &By) -> Result<Option<User>> {
        let transaction = self.store.db().begin().await?;
        table::hold_admins(&transaction).await?;
        if table::has_admin(&transaction).await? {
            return Ok(None);
        }
        let user = insert(&transaction, &NewUser { role: Role::Admin, ..new }, by).await?;
        db::commit(transaction).await?;
        Ok(Some(user))
    }

    /// Whether there is an admin, active or not.
    pub async fn has_admin(&self) -> Result<bool> {
        table::has_admin(self.store.db().pool()).await
    }

    /// An account.
    pub async fn find(&self, id: UserId) -> Result<Option<User>> {
        table::find(self.store.db(), id).await
    }

    /// The account with this address.
    pub async fn find_by_email(&self, email: &Email) -> Result<Option<User>> {
        table::find_by_email(self.store.db(), email).await
    }

    /// The account with this address and what proves its owner, if it can log in at all.
    pub async fn password_of(&self, email: &Email) -> Result<Option<(User, PasswordHash)>> {
        table::password_of(self.store.db(), email).await
    }

    /// The accounts that `filter` lets through, newest first.
    pub async fn list(&self, filter: UserFilter) -> Result<Vec<User>> {
        table::list(self.store.db(), filter).await
    }

    /// Change an account; `None` when it is not there. Fails with [`Error::EmailTaken`], with [`Error::WrongPassword`]
    /// when another password came between, and with [`Error::LastAdmin`] when nobody would be left who may administer
    /// the service.
    pub async fn update(&self, id: UserId, change: UserChange, by: &By) -> Result<Option<User>> {
        let transaction = self.store.db().begin().await?;
        if change.role.is_some() || change.disabled.is_some() {
            table::hold_admins(&transaction).await?;
        }
        let Some(before) = table::hold(&transaction, id).await? else { return Ok(None) };
        if let Some(proof) = &change.proof
            && !table::is_password(&transaction, id, proof).await?
        {
            return Err(Error::WrongPassword);
        }
        let (after, changed) = change.applied_to(&before);
        if before.is_active_admin() && !after.is_active_admin() && !table::has_admin_beside(&transaction, id).await? {
            return Err(Error::LastAdmin);
        }
        if !changed.is_empty() {
            table::update(&transaction, &after).await?;
            audit::insert(&transaction, by, Action::UserUpdate, Some(id.to_string()), Some(json!({ "changed": changed }))).await?;
        }
        if let Some(password) = &change.password {
            table::set_password(&transaction, id, password).await?;
            logins::revoke_all(&transaction, id, change.keep_family).await?;
            audit::insert(&transaction, by, Action::PasswordChange, Some(id.to_string()), None).await?;
        }
        db::commit(transaction).await?;
        changes::announce(&self.store, id).await;
        Ok(Some(after))
    }

    /// Keep the same password by another hash; nothing happens when `old` is not its hash any more.
    pub async fn rehash(&self, id: UserId, old: &PasswordHash, new: &PasswordHash) -> Result<()> {
        table::rehash(self.store.db(), id, old, new).await
    }

    /// Delete an account: its credentials are dead and its address is free when this answers, its jobs
    /// are cancelled, and the leader forgets its rows once none of them runs. What it used stays in the
    /// accounts, and what it did in the audit log. False when it is not there; fails with
    /// [`Error::LastAdmin`].
    pub async fn delete(&self, id: UserId, by: &By) -> Result<bool> {
        let transaction = self.store.db().begin().await?;
        table::hold_admins(&transaction).await?;
        let Some(user) = table::hold(&transaction, id).await? else { return Ok(false) };
        if user.is_active_admin() && !table::has_admin_beside(&transaction, id).await? {
            return Err(Error::LastAdmin);
        }
        table::mark_deleted(&transaction, id).await?;
        logins::revoke_all(&transaction, id, None).await?;
        api_keys::revoke_all(&transaction, id).await?;
        audit::insert(&transaction, by, Action::UserDelete, Some(id.to_string()), None).await?;
        db::commit(transaction).await?;
        changes::announce(&self.store, id).await;
        if let Err(error) = cancel_all(&self.store, id).await {
            tracing::warn!(user.id = %id, %error, "Left the jobs of the deleted user `{id}` to the leader to cancel");
        }
        Ok(true)
    }
}

async fn insert(transaction: &DatabaseTransaction, new: &NewUser, by: &By) -> Result<User> {
    let user = table::insert(transaction, new).await?.ok_or(Error::EmailTaken)?;
    // Nobody, but from somewhere: somebody who has no account yet.
    let (action, by) = match (by.actor, by.address) {
        (None, Some(_)) => (Action::UserRegister, by.or(user.id)),
        (Some(_), _) | (None, None) => (Action::UserCreate, by.clone()),
    };
    audit::insert(transaction, &by, action, Some(user.id.to_string()), Some(json!({ "role": user.role }))).await?;
    Ok(user)
}

impl UserChange {
    /// What becomes of `user`, and the names of what is another then. The password is not of it.
    fn applied_to(&self, user: &User) -> (User, Vec<&'static str>) {
        let mut changed = Vec::new();
        let mut after = user.clone();
        let email = self.email.as_ref().map(|email| email.as_str().to_owned());
        put(&mut after.email, email, "email", &mut changed);
        put(&mut after.name, self.name.clone(), "name", &mut changed);
        put(&mut after.role, self.role, "role", &mut changed);
        put(&mut after.disabled, self.disabled, "disabled", &mut changed);
        put(&mut after.limits.rate_limit_per_hour, self.rate_limit_per_hour, "rate_limit_per_hour", &mut changed);
        put(&mut after.limits.max_concurrent_jobs, self.max_concurrent_jobs, "max_concurrent_jobs", &mut changed);
        put(&mut after.limits.queue_weight, self.queue_weight, "queue_weight", &mut changed);
        put(&mut after.limits.daily_budget, self.daily_budget, "daily_budget_usd", &mut changed);
        (after, changed)
    }
}

fn put<T: PartialEq>(place: &mut T, value: Option<T>, name: &'static str, changed: &mut Vec<&'static str>) {
    if let Some(value) = value.filter(|value| value != place) {
        *place = value;
        changed.push(name);
    }
}

/// End the jobs of a user who is gone.
async fn cancel_all(store: &Store, user: UserId) -> Result<()> {
    let unended = jobs::unended(store.db(), user, BATCH).await?;
    ending::cancel_all(store, user, unended).await
}

/// Forget what is left of deleted users, as far as nothing of it runs.
pub(crate) async fn forget_deleted(store: &Store) -> Result<()> {
    for user in table::deleted(store.db(), BATCH).await? {
        // A submit may have been on its way when the account was deleted, and so may a conversation.
        cancel_all(store, user).await?;
        sessions::mark_all_deleted(store.db().pool(), user).await?;
        jobs::forget_ended(store.db().pool(), user, BATCH).await?;
        if table::forget(store.db(), user).await? {
            tracing::info!(user.id = %user, "Forgot the deleted user `{user}`");
        }
    }
    Ok(())
}
