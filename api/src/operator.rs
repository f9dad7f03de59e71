//! What operators do without a token, because they have the machine: make an admin, make and revoke keys. The audit
//! log has it as done by nobody.

use std::{
    fs,
    io::{self, BufRead as _, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::Value;
use shared::{
    api_key::Scope,
    api_keys::{ApiKeys, NewApiKey},
    audit::By,
    id::ApiKeyId,
    store::Store,
    time::Timestamp,
    user::{Email, Role, UserLimits},
    users::{NewUser, Users},
};

use crate::{
    app::App,
    config::FirstAdmin,
    password::{MAX_CHARS, MIN_CHARS, Password, Passwords},
};

/// The longest first line of a file that is still taken for a password.
const MAX_PASSWORD_BYTES: u64 = 4 * MAX_CHARS as u64 + 2;

/// Work on accounts, straight in the record.
#[derive(Debug, Subcommand)]
pub enum Task {
    /// Admins.
    #[command(subcommand)]
    Admin(AdminTask),
    /// API keys.
    #[command(subcommand)]
    Key(KeyTask),
}

/// Work on admins.
#[derive(Debug, Subcommand)]
pub enum AdminTask {
    /// Make an admin and print their id. The password is the first line of standard input, or of a file.
    Create(NewAdmin),
}

/// Work on API keys.
#[derive(Debug, Subcommand)]
pub enum KeyTask {
    /// Make a key and print it, alone: it is never shown again.
    Create(NewKey),
    /// Revoke a key.
    Revoke {
        /// The id of the key (`key_…`).
        id: ApiKeyId,
    },
}

/// An admin to be.
#[derive(Debug, Args)]
pub struct NewAdmin {
    /// The address to log in with.
    #[arg(long)]
    email: Email,
    /// What they like to be called.
    #[arg(long)]
    name: Option<String>,
    /// Where the password is; standard input if absent.
    #[arg(long)]
    password_file: Option<PathBuf>,
}

/// A key to be.
#[derive(Debug, Args)]
pub struct NewKey {
    /// Whose key it is.
    #[arg(long)]
    email: Email,
    /// What it is called.
    #[arg(long)]
    name: String,
    /// What it may be used for: `chat`, `read`, `admin`; the first two if absent. May be given again.
    #[arg(long = "scope", value_delimiter = ',', value_parser = scope)]
    scopes: Vec<Scope>,
    /// When it stops to work, as RFC 3339 has it; never if absent.
    #[arg(long, value_parser = timestamp)]
    expires_at: Option<Timestamp>,
}

/// Do `task`; what is to be printed.
pub async fn perform(store: &Store, task: Task) -> anyhow::Result<String> {
    match task {
        Task::Admin(AdminTask::Create(admin)) => create_admin(store, admin).await,
        Task::Key(KeyTask::Create(key)) => create_key(store, key).await,
        Task::Key(KeyTask::Revoke { id }) => {
            if !ApiKeys::new(store).revoke(id, None, &By::default()).await? {
                bail!("there is no key `{id}`");
            }
            Ok(String::new())
        }
    }
}

async fn create_admin(store: &Store, admin: NewAdmin) -> anyhow::Result<String> {
    let password = chosen_password(admin.password_file.as_deref())?;
    let password = Passwords::default().hash(&password).await?;
    let new = NewUser { email: admin.email, name: admin.name, password, role: Role::Admin, limits: UserLimits::default() };
    let user = Users::new(store).create(new, &By::default()).await?;
    Ok(format!("{}\n", user.id))
}

async fn create_key(store: &Store, key: NewKey) -> anyhow::Result<String> {
    let user = Users::new(store).find_by_email(&key.email).await?.context("there is no account with this email")?;
    let scopes = if key.scopes.is_empty() { vec![Scope::Chat, Scope::Read] } else { key.scopes };
    if scopes.contains(&Scope::Admin) && user.role != Role::Admin {
        bail!("the scope `admin` is for keys of admins");
    }
    let new = NewApiKey {
        user_id: user.id,
        name: key.name,
        scopes,
        allowed_tools: None,
        allowed_ips: None,
        rate_limit_per_hour: None,
        max_concurrent_jobs: None,
        expires_at: key.expires_at,
    };
    let (_, text) = ApiKeys::new(store).create(new, &By::default()).await?;
    Ok(format!("{}\n", text.expose()))
}

/// See that there is an admin, where the settings name one. Never changes an account that exists.
pub async fn ensure_admin(app: &App) -> anyhow::Result<()> {
    let Some(FirstAdmin { email, password }) = &app.config.first_admin else { return Ok(()) };
    // Hashing is slow, and every start but the first needs none.
    if app.users.has_admin().await? {
        return Ok(());
    }
    let password = app.passwords.hash(password).await?;
    let new = NewUser { email: email.clone(), name: None, password, role: Role::Admin, limits: UserLimits::default() };
    let made = app.users.create_first_admin(new, &By::default()).await;
    let made = made.context("could not make the admin of `ADMIN_EMAIL` (hint: `api admin create` makes one with another address)")?;
    if let Some(user) = made {
        tracing::info!(user.id = %user.id, "Made the admin of `ADMIN_EMAIL`, the first one");
    }
    Ok(())
}

/// The first line of `file`, or of standard input. Never an argument: those are seen by everybody on the machine.
fn chosen_password(file: Option<&Path>) -> anyhow::Result<Password> {
    let mut line = String::new();
    match file {
        Some(path) => {
            let file = fs::File::open(path).with_context(|| format!("could not open `{}`", path.display()))?;
            io::BufReader::new(file.take(MAX_PASSWORD_BYTES)).read_line(&mut line)
        }
        None => io::stdin().lock().take(MAX_PASSWORD_BYTES).read_line(&mut line),
    }
    .context("could not read the password")?;
    let password = Password::new(line.strip_suffix('\n').map_or(line.as_str(), |line| line.strip_suffix('\r').unwrap_or(line)));
    if !password.may_be_chosen() {
        bail!("a password is {MIN_CHARS} to {MAX_CHARS} characters long");
    }
    Ok(password)
}

fn scope(word: &str) -> Result<Scope, String> {
    serde_json::from_value(Value::from(word)).map_err(|_| "not one of `chat`, `read`, `admin`".to_owned())
}

fn timestamp(text: &str) -> Result<Timestamp, String> {
    let at: Timestamp = serde_json::from_value(Value::from(text)).map_err(|_| "not a time such as `2027-01-31T12:00:00Z`".to_owned())?;
    if at > Timestamp::now() { Ok(at) } else { Err("not in the future".to_owned()) }
}
