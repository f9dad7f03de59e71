//! What a turn needs of its conversation, and what it leaves to the next. A turn that does not complete leaves
//! nothing: the next one goes on from where this one began.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use shared::{
    lease::{Kept, Lease, Outcome},
    session::Session,
    workspace::Bounds,
};
use uuid::Uuid;

use crate::{
    chat::{self, outcome_of},
    claude::{
        command::Thread,
        failure::{Code, Failure},
    },
    job_dir::JobDir,
    transcript::{self, TranscriptError},
    tree::Tree,
    workspace::{self, LaidOut, WorkspaceError},
};

/// A conversation, laid out for one of its turns.
#[derive(Debug)]
pub struct Conversation {
    session: Session,
    has_begun: bool,
    /// The files, where the turn can change them.
    workspace: Option<LaidOut>,
}

impl Conversation {
    /// Lay out in `dir` what the turn of `lease` goes on from; its files only where it `uses_files`.
    pub async fn open(lease: &Lease, session: Session, dir: &Arc<JobDir>, uses_files: bool) -> Result<Self, Outcome> {
        let transcript = lease.transcript().await.map_err(|error| unread(lease, &error))?;
        let has_begun = transcript.is_some();
        if let Some(transcript) = transcript {
            let (dir, id) = (dir.clone(), session.id);
            let restored = blocking(move || transcript::restore(&dir.config(), id, &transcript)).await;
            restored.map_err(|error| {
                // A disk may be better elsewhere, or later.
                let code = if matches!(error, TranscriptError::Io(_)) { Code::SessionNotRestored } else { Code::SessionUnreadable };
                failed(lease, &error, code)
            })?;
        }
        let mut workspace = None;
        if uses_files && let Some((manifest, contents)) = lease.workspace().await.map_err(|error| unread(lease, &error))? {
            let dir = dir.clone();
            let laid_out = blocking(move || workspace::lay_out(&dir.workspace(), &manifest, contents)).await;
            workspace = Some(laid_out.map_err(|error| {
                let code = if matches!(error, WorkspaceError::Io(_)) { Code::SessionNotRestored } else { Code::SessionUnreadable };
                failed(lease, &error, code)
            })?);
        }
        Ok(Self { session, has_begun, workspace })
    }

    /// The conversation.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// How the CLI is told about it.
    pub fn thread(&self) -> Thread {
        let id = self.session.id.uuid();
        if self.has_begun { Thread::Resumed(id) } else { Thread::New(id) }
    }

    /// Gather what the turn left in `dir`, in which the CLI of `cli_version` was asked `message`.
    pub async fn keep(self, lease: &Lease, dir: &Arc<JobDir>, message: Uuid, cli_version: Option<String>) -> Result<Kept, Failure> {
        let (its, id) = (dir.clone(), self.session.id);
        let packed = blocking(move || transcript::pack(&its.config(), id, message, cli_version)).await;
        let transcript = packed.map_err(|error| {
            let code = if matches!(error, TranscriptError::TooLarge) { Code::SessionTooLarge } else { Code::SessionNotSaved };
            told(lease, &error, code)
        })?;
        let (mut workspace, mut leaves_contents) = (None, false);
        if let Some(laid_out) = self.workspace {
            let bounds = lease.kept_bounds().await.map_err(|error| told(lease, &error, Code::SessionNotSaved))?;
            let dir = dir.clone();
            let gathered = blocking(move || laid_out.gather(&dir.workspace(), bounds)).await;
            let gathered = gathered.map_err(|error| {
                let code = if matches!(error, WorkspaceError::TooLarge) { Code::WorkspaceTooLarge } else { Code::SessionNotSaved };
                told(lease, &error, code)
            })?;
            leaves_contents = gathered.leaves_contents;
            workspace = Some(gathered.manifest);
        }
        Ok(Kept { transcript, workspace, leaves_contents })
    }
}

/// Wait until what a job put into one of `folders` is larger than a workspace may be, or so much that its disk
/// suffers. How many files a conversation keeps is counted when they are gathered.
pub async fn outgrown(folders: [PathBuf; 4], bounds: Bounds) {
    const MOST_ENTRIES: usize = 1_000_000;
    /// Long enough that a look costs nothing, short enough that no disk is filled.
    const EVERY: Duration = Duration::from_secs(2);
    let bounds = Bounds { entries: MOST_ENTRIES, ..bounds };
    loop {
        tokio::time::sleep(EVERY).await;
        let folders = folders.clone();
        let is_beyond = move || folders.iter().any(|folder| Tree::open(folder).is_ok_and(|tree| tree.is_beyond(bounds)));
        if tokio::task::spawn_blocking(is_beyond).await.unwrap_or(false) {
            return;
        }
    }
}

/// Do what blocks, off the runtime's threads. Whoever waits may be dropped; what `act` holds stays until it is done,
/// the folder it works in above all.
async fn blocking<T, E>(act: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<io::Error> + Send + 'static,
{
    tokio::task::spawn_blocking(act).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked).into()))
}

/// The record did not tell what the turn goes on from.
pub fn unread(lease: &Lease, error: &shared::Error) -> Outcome {
    tracing::warn!(job.id = %lease.job().id, %error, cause = ?std::error::Error::source(error), "Could not read the conversation of job `{}`", lease.job().id);
    chat::unread(error)
}

fn failed(lease: &Lease, error: &dyn std::error::Error, code: Code) -> Outcome {
    outcome_of(&told(lease, error, code), lease)
}

fn told(lease: &Lease, error: &dyn std::error::Error, code: Code) -> Failure {
    tracing::warn!(job.id = %lease.job().id, %error, cause = ?error.source(), "Job `{}`: {}", lease.job().id, code.as_str());
    Failure::new(code)
}
