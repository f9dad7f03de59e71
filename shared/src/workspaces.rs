//! The door to the files of conversations: the list is in the record, the contents are in a folder that all
//! hosts see. A list changes while no job of its conversation runs, or with the end of the job that ran; a
//! content gets its name, or loses it, while the conversation is held.

use std::time::{Duration, Instant};

use crate::{
    Error, Result,
    contents::{Contents, Received},
    db::{self, jobs, sessions, workspaces as table},
    id::{SessionId, UserId},
    store::Store,
    time::Timestamp,
    workspace::{Bounds, Entry, FilePath, Manifest},
};

/// What can be done with the files of conversations.
#[derive(Clone)]
pub struct Workspaces {
    store: Store,
}

impl Workspaces {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// What is in the workspace of a conversation of `user`. `None` when there is no such conversation.
    pub async fn list(&self, user: UserId, session: SessionId) -> Result<Option<Manifest>> {
        let db = self.store.db().pool();
        if sessions::find(db, user, session).await?.is_none() {
            return Ok(None);
        }
        table::get(db, session).await.map(Some)
    }

    /// Where the contents of a conversation are.
    pub fn contents(&self, session: SessionId) -> Contents {
        Contents::of(self.store.workspace_store(), session)
    }

    /// Put a file into the workspace of a conversation of `user`, as runnable as what was there. Answers the
    /// file, and whether it took the place of something. Fails with [`Error::NoSuchSession`],
    /// [`Error::SessionArchived`], with [`Error::SessionBusy`] while a job of it runs, and with
    /// [`Error::Workspace`] when the list cannot have it.
    pub async fn put(&self, user: UserId, session: SessionId, path: FilePath, content: Received) -> Result<(Entry, bool)> {
        let bounds = bounds(&self.store, session).await?;
        let contents = self.contents(session);
        let put = self.change(user, session, async |manifest| {
            let replaced = manifest.get(&path);
            let is_replaced = replaced.is_some();
            let executable = matches!(replaced, Some(Entry::File { executable: true, .. }));
            let entry = Entry::File { sha256: content.sha256.clone(), bytes: content.bytes, executable, modified_at: Timestamp::now() };
            manifest.put(path, entry.clone(), bounds).map_err(Error::Workspace)?;
            blocking(move || contents.keep(content).and_then(|()| contents.sync_names())).await?;
            Ok(Some((entry, is_replaced)))
        });
        put.await?.ok_or_else(|| Error::Internal { what: "a file was not put", source: "nothing changed".into() })
    }

    /// Take a file, or a link, out of the workspace of a conversation of `user`. False when there is none;
    /// fails as [`Self::put`] does.
    pub async fn remove(&self, user: UserId, session: SessionId, path: &FilePath) -> Result<bool> {
        let removed = self.change(user, session, async |manifest| Ok(manifest.remove(path).then_some(()))).await?;
        Ok(removed.is_some())
    }

    /// Change the list of a conversation that nothing happens to meanwhile, and sweep what it then no longer
    /// names. Nothing is written where `change` answers `None`.
    async fn change<T>(
        &self,
        user: UserId,
        session: SessionId,
        change: impl AsyncFnOnce(&mut Manifest) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let transaction = self.store.db().begin().await?;
        let held = sessions::hold(&transaction, user, session).await?.ok_or(Error::NoSuchSession)?;
        if held.archived {
            return Err(Error::SessionArchived);
        }
        // A claim that comes after this look reads the list once this transaction has ended.
        if jobs::runs_in(&transaction, session).await? {
            return Err(Error::SessionBusy);
        }
        let before = table::get(&transaction, session).await?;
        let mut after = before.clone();
        let Some(changed) = change(&mut after).await? else { return Ok(None) };
        table::put(&transaction, session, &after).await?;
        db::commit(transaction).await?;
        if after.has_dropped_a_content_of(&before) {
            sweep(&self.store, user, session).await;
        }
        Ok(Some(changed))
    }
}

/// How much the workspace of a conversation may keep: what each may, as far as the others of its owner leave that, and
/// what it has in any case.
pub(crate) async fn bounds(store: &Store, session: SessionId) -> Result<Bounds> {
    let bounds = store.workspace_bounds();
    let (own, others) = table::bytes(store.db(), session).await?;
    let left = store.workspaces_per_user().saturating_sub(others);
    Ok(Bounds { bytes: bounds.bytes.min(left.max(own)), ..bounds })
}

/// How long a sweep may go on: whoever wants the conversation meanwhile waits for it, and not for long.
const SWEEP_LIMIT: Duration = Duration::from_millis(250);

/// Remove the contents that a conversation's list does not name, unless something is happening to it. What it
/// does not come to, the next one does.
pub(crate) async fn sweep(store: &Store, user: UserId, session: SessionId) {
    // A task of its own: whoever waits for it may be dropped, and the conversation is held to the very end.
    let swept = tokio::spawn({
        let store = store.clone();
        async move { try_sweep(&store, user, session).await }
    });
    let swept = swept.await.unwrap_or_else(|source| Err(Error::Internal { what: "a sweep panicked", source: source.into() }));
    if let Err(error) = swept {
        tracing::warn!(session.id = %session, %error, cause = ?std::error::Error::source(&error), "Left contents of `{session}` that no file has");
    }
}

async fn try_sweep(store: &Store, user: UserId, session: SessionId) -> Result<()> {
    let transaction = store.db().begin().await?;
    // Who writes contents for this conversation holds it, or runs a job of it.
    if sessions::hold(&transaction, user, session).await?.is_none() || jobs::runs_in(&transaction, session).await? {
        return Ok(());
    }
    let end = Instant::now() + SWEEP_LIMIT;
    let manifest = table::get(&transaction, session).await?;
    let contents = Contents::of(store.workspace_store(), session);
    blocking(move || contents.sweep(&manifest, end)).await?;
    db::commit(transaction).await
}

/// Do what blocks, off the runtime's threads.
pub async fn blocking<T: Send + 'static>(act: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(act).await;
    let done = done.map_err(|source| Error::Internal { what: "the work on contents panicked", source: source.into() })?;
    done.map_err(|source| Error::Internal { what: "the workspace store did not do as asked", source: source.into() })
}
