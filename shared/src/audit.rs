//! The door to the audit log: who did what, to whom, when, from where. The other doors write their
//! entries in the transaction of the change itself; [`AuditLog::note`] is for what changes no row.

use std::net::IpAddr;

use serde_json::Value;

use crate::{
    Result,
    db::audit as table,
    id::{ApiKeyId, AuditId, UserId},
    store::Store,
    time::Timestamp,
};

/// Who acts, by which key, and from where. Nobody from nowhere is the service itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct By {
    /// The user, where one is known.
    pub actor: Option<UserId>,
    /// The key that was shown.
    pub api_key: Option<ApiKeyId>,
    /// The client's address.
    pub address: Option<IpAddr>,
}

impl By {
    /// The same, done by `user` where nobody is known.
    pub(crate) fn or(&self, user: UserId) -> Self {
        Self { actor: self.actor.or(Some(user)), ..self.clone() }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Somebody made an account for themselves.
    UserRegister,
    /// An admin, or the service at its start, made an account.
    UserCreate,
    /// An account was changed; the detail names what.
    UserUpdate,
    /// An account was deleted.
    UserDelete,
    /// An account has a new password.
    PasswordChange,
    /// Somebody logged in.
    Login,
    /// Somebody tried to.
    LoginFailed,
    /// A login was ended.
    Logout,
    /// A refresh token was shown that was used or revoked before: it may have been stolen.
    TokenReused,
    /// A key was made.
    KeyCreate,
    /// A key was revoked.
    KeyRevoke,
    /// Somebody's job was ended early by an admin.
    JobCancel,
    /// A dead letter was sent again.
    JobRetry,
    /// An admin read somebody else's conversation.
    SessionRead,
    /// Somebody's conversation was deleted by an admin.
    SessionDelete,
    /// A worker was told to take no more jobs.
    WorkerDrain,
    /// A tool was switched on or off.
    ToolSwitch,
}

impl Action {
    /// The word for it in the record and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserRegister => "user.register",
            Self::UserCreate => "user.create",
            Self::UserUpdate => "user.update",
            Self::UserDelete => "user.delete",
            Self::PasswordChange => "password.change",
            Self::Login => "login",
            Self::LoginFailed => "login.failed",
            Self::Logout => "logout",
            Self::TokenReused => "token.reused",
            Self::KeyCreate => "key.create",
            Self::KeyRevoke => "key.revoke",
            Self::JobCancel => "job.cancel",
            Self::JobRetry => "job.retry",
            Self::SessionRead => "session.read",
            Self::SessionDelete => "session.delete",
            Self::WorkerDrain => "worker.drain",
            Self::ToolSwitch => "tool.switch",
        }
    }
}

/// One thing that was done.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditEntry {
    /// Its id.
    pub id: AuditId,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub by: By,
    /// What: the word of an [`Action`], perhaps of another version of the service.
    pub action: String,
    /// To whom or what: an id in its text form.
    pub target: Option<String>,
    /// The names of what changed. Never a secret.
    pub detail: Option<Value>,
}

/// Which entries to list, newest first.
#[derive(Clone, Debug)]
pub struct AuditFilter {
    /// Only what this user did.
    pub actor: Option<UserId>,
    /// Only this action.
    pub action: Option<String>,
    /// Only what is older than this entry.
    pub before: Option<AuditId>,
    /// The most to answer.
    pub limit: u32,
}

/// What can be done with the audit log.
#[derive(Clone)]
pub struct AuditLog {
    store: Store,
}

impl AuditLog {
    /// The door over `store`.
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// Write an entry that belongs to no change of the record.
    pub async fn note(&self, by: By, action: Action, target: Option<String>, detail: Option<Value>) -> Result<()> {
        table::insert(self.store.db().pool(), &by, action, target, detail).await
    }

    /// The entries that `filter` lets through, newest first.
    pub async fn list(&self, filter: AuditFilter) -> Result<Vec<AuditEntry>> {
        table::list(self.store.db(), filter).await
    }
}
