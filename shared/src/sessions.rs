//! The door to conversations: make, find, list, change, delete.

use crate::{
    Error, Result,
    contents::Contents,
    db::{self, jobs, sessions as table},
    ending,
    id::{JobId, SessionId, UserId},
    job::Job,
    redis::transcripts as cache,
    session::{NewSession, Session, SessionChange, SessionFigures},
    store::Store,
    workspaces::blocking,
};

/// The most deleted conversations, and jobs of one of them, that are looked at in one round.
const BATCH: u32 = 100;

/// What can be done with conversations.
#[derive(Clone)]
pub struct Sessions {
    store: Store,
}

impl Sessions {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// Begin a conversation of `user`.
    pub async fn create(&self, user: UserId, new: &NewSession) -> Result<Session> {
        let made = table::insert(self.store.db(), SessionId::new(), user, new).await?;
        made.ok_or_else(|| Error::Internal { what: "a session was not made", source: "no row".into() })
    }

    /// A conversation of `user`.
    pub async fn find(&self, user: UserId, id: SessionId) -> Result<Option<Session>> {
        table::find(self.store.db().pool(), user, id).await
    }

    /// A conversation of `user`, with what became of it.
    pub async fn look(&self, user: UserId, id: SessionId) -> Result<Option<(Session, SessionFigures)>> {
        Ok(table::list(self.store.db(), Some(user), Some(id), None, 1).await?.pop())
    }

    /// The conversations of `user` that are older than `before`, newest first, with what became of them.
    pub async fn list(&self, user: UserId, before: Option<SessionId>, limit: u32) -> Result<Vec<(Session, SessionFigures)>> {
        self.list_all(Some(user), before, limit).await
    }

    /// The conversations of everybody, or of one user, as [`Self::list`] tells them.
    pub async fn list_all(&self, user: Option<UserId>, before: Option<SessionId>, limit: u32) -> Result<Vec<(Session, SessionFigures)>> {
        table::list(self.store.db(), user, None, before, limit).await
    }

    /// Any conversation, whoever it is of, with what became of it.
    pub async fn peek(&self, id: SessionId) -> Result<Option<(Session, SessionFigures)>> {
        Ok(table::list(self.store.db(), None, Some(id), None, 1).await?.pop())
    }

    /// Change a conversation of `user`. `None` when there is none. Its jobs see the change when they start.
    pub async fn update(&self, user: UserId, id: SessionId, change: SessionChange) -> Result<Option<Session>> {
        let transaction = self.store.db().begin().await?;
        let Some(held) = table::hold(&transaction, user, id).await? else { return Ok(None) };
        let changed = table::update(&transaction, &change.applied_to(held)).await?;
        db::commit(transaction).await?;
        Ok(changed)
    }

    /// Delete a conversation of `user`: it takes no more jobs when this answers, those it has are cancelled,
    /// and once none of them runs the leader removes its transcript and its files. What it used stays in the
    /// accounts, and its jobs stay jobs. False when there is none.
    pub async fn delete(&self, user: UserId, id: SessionId) -> Result<bool> {
        if !table::mark_deleted(self.store.db().pool(), user, id).await? {
            return Ok(false);
        }
        if let Err(error) = purge(&self.store, id, user).await {
            tracing::warn!(session.id = %id, %error, "Left the deleted session `{id}` to the leader to purge");
        }
        Ok(true)
    }

    /// The turns that a conversation consists of, newest first: the jobs of it that completed before the
    /// one `before`.
    pub async fn turns(&self, id: SessionId, before: Option<JobId>, limit: u32) -> Result<Vec<Job>> {
        jobs::turns(self.store.db(), id, before, limit).await
    }
}

/// Cancel the jobs of a deleted conversation and, once none is left, remove what it kept.
async fn purge(store: &Store, session: SessionId, user: UserId) -> Result<()> {
    let unended = jobs::unended_in(store.db(), session, BATCH).await?;
    if !unended.is_empty() {
        return ending::cancel_all(store, user, unended).await;
    }
    // Contents first: without the row nobody would look for them.
    let contents = Contents::of(store.workspace_store(), session);
    blocking(move || contents.remove()).await?;
    cache::forget(store.redis(), session).await?;
    let transaction = store.db().begin().await?;
    table::purge(&transaction, session).await?;
    db::commit(transaction).await?;
    tracing::info!(session.id = %session, "Purged the deleted session `{session}`");
    Ok(())
}

/// Remove the contents that came after their conversation was purged: an upload or a worker was slow.
pub(crate) async fn sweep_purged(store: &Store) -> Result<()> {
    let folder = store.workspace_store().to_owned();
    let sessions = blocking(move || Contents::sessions(&folder)).await?;
    for some in sessions.chunks(500) {
        for session in table::purged(store.db(), some).await? {
            let contents = Contents::of(store.workspace_store(), session);
            blocking(move || contents.remove()).await?;
        }
    }
    Ok(())
}

/// Remove what is left of deleted conversations, as far as no job of them runs.
pub(crate) async fn purge_deleted(store: &Store) -> Result<()> {
    for (session, user) in table::to_purge(store.db(), BATCH).await? {
        // One that cannot be purged must not keep the others.
        if let Err(error) = Box::pin(purge(store, session, user)).await {
            if error.is_unavailable() {
                return Err(error);
            }
            tracing::warn!(session.id = %session, %error, cause = ?std::error::Error::source(&error), "Could not purge the deleted session `{session}`");
        }
    }
    Ok(())
}
