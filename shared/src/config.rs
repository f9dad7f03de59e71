//! Settings from the environment. Each binary reads its own in its `config.rs`, through [`Env`]; here
//! are the readers and the settings both share. A value that cannot be read stops the start with the
//! variable's name; secrets stay inside [`SecretString`] and never show in a debug print.

use std::{collections::HashMap, fmt::Display, path::PathBuf, str::FromStr, time::Duration};

pub use secrecy::{ExposeSecret, SecretString};

use crate::workspace::Bounds;

/// A setting that is missing or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A required variable is not there.
    #[error("`{0}` is not set")]
    Missing(&'static str),
    /// A variable holds something else than it should.
    #[error("`{name}` is {problem}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// What is wrong with it, without its value: it may be a secret.
        problem: String,
    },
}

impl ConfigError {
    /// `name` holds something that is `problem`.
    pub fn invalid(name: &'static str, problem: impl Display) -> Self {
        Self::Invalid { name, problem: problem.to_string() }
    }
}

/// The variables a process was started with. An empty value counts as absent.
#[derive(Clone, Debug, Default)]
pub struct Env(HashMap<String, String>);

impl Env {
    /// This process's own variables; those that are not Unicode are left out.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect())
    }

    /// The given variables alone.
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// The value of `name`, if it is there and not empty.
    pub fn text(&self, name: &'static str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The value of `name`, kept out of debug prints.
    pub fn secret(&self, name: &'static str) -> Option<SecretString> {
        self.text(name).map(SecretString::from)
    }

    /// The value of `name` as a `T`, or `default` when it is absent.
    pub fn parsed<T: FromStr>(&self, name: &'static str, default: T) -> Result<T, ConfigError>
    where
        T::Err: Display,
    {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.trim().parse().map_err(|error| ConfigError::invalid(name, format_args!("not readable: {error}")))
    }

    /// The value of `name` as a switch (`1`, `true`, `0`, `false`), off when it is absent.
    pub fn switch(&self, name: &'static str) -> Result<bool, ConfigError> {
        match self.text(name) {
            None | Some("0" | "false") => Ok(false),
            Some("1" | "true") => Ok(true),
            Some(_) => Err(ConfigError::invalid(name, "neither `1` nor `0`")),
        }
    }

    /// The value of `name` as a length of time, or `default` when it is absent. A bare number counts
    /// seconds; `500ms`, `30s`, `5m` and `2h` are understood. Zero is refused.
    pub fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(text) = self.text(name) else { return Ok(default) };
        parse_duration(text.trim()).filter(|duration| !duration.is_zero()).ok_or_else(|| {
            ConfigError::invalid(name, "not a length of time (hint: `30` and `30s` are seconds; `500ms`, `5m`, `2h` work too)")
        })
    }

    /// The same, and none at all where it is `0` or absent.
    pub fn pause(&self, name: &'static str) -> Result<Duration, ConfigError> {
        match self.text(name).map(str::trim) {
            None | Some("0" | "0s" | "0ms") => Ok(Duration::ZERO),
            Some(_) => self.duration(name, Duration::ZERO),
        }
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

/// Where the record and the motion live, and how fast a dead worker is noticed.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `postgresql://…` or `sqlite://…`; may hold a password.
    pub database_url: SecretString,
    /// `redis://…`, `rediss://…` or `redis+unix:///path`; may hold a password.
    pub redis_url: SecretString,
    /// The most database connections of this process.
    pub database_connections: u32,
    /// Where the files of conversations are, for all hosts.
    pub workspace_store: PathBuf,
    /// How much each conversation may keep there.
    pub workspace_bounds: Bounds,
    /// How long the events of a job are kept after its end.
    pub event_retention: Duration,
    /// The most jobs of one user that wait.
    pub max_queued_per_user: u32,
    /// The protocol's clocks.
    pub timing: Timing,
}

/// The protocol's clocks. The same in every process of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a worker says that it lives.
    pub beat: Duration,
    /// How long a worker may be silent before its jobs are given to others.
    pub ttl: Duration,
    /// How often the leader looks for work to repair.
    pub tick: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { beat: Duration::from_secs(1), ttl: Duration::from_secs(10), tick: Duration::from_millis(500) }
    }
}

impl Timing {
    /// How long without an accepted beat a worker may go on: shorter than [`Self::ttl`], so that its
    /// processes are gone before a successor may start.
    pub fn entitlement(self) -> Duration {
        self.ttl * 4 / 5
    }

    /// How long a beat may stay out before other signs of death count, as a lock that is free.
    pub fn overdue(self) -> Duration {
        self.beat * 2
    }
}

impl StoreConfig {
    /// Read `DATABASE_URL`, `REDIS_URL`, `DATABASE_CONNECTIONS`, `WORKSPACE_STORE`, `WORKSPACE_MAX_BYTES`,
    /// `WORKSPACE_MAX_FILES`, `EVENT_RETENTION_SECS`, `MAX_QUEUED_PER_USER`, `WORKER_BEAT` and `WORKER_TTL`.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let database_url = env.text("DATABASE_URL").unwrap_or("postgresql://postgres:password@localhost:5432/claude_api");
        let redis_url = env.text("REDIS_URL").unwrap_or("redis://localhost:6379");
        let known = ["postgresql://", "postgres://", "sqlite:"];
        if !known.iter().any(|scheme| database_url.starts_with(scheme)) {
            return Err(ConfigError::invalid("DATABASE_URL", "not a `postgresql://` or `sqlite://` address"));
        }
        let defaults = Timing::default();
        let beat = env.duration("WORKER_BEAT", defaults.beat)?;
        let ttl = env.duration("WORKER_TTL", defaults.ttl)?;
        if ttl < beat * 4 {
            return Err(ConfigError::invalid("WORKER_TTL", "less than four times `WORKER_BEAT`: a slow beat would look like a death"));
        }
        let max_queued_per_user = env.parsed("MAX_QUEUED_PER_USER", 1_000)?;
        if max_queued_per_user == 0 {
            return Err(ConfigError::invalid("MAX_QUEUED_PER_USER", "0: no job could be accepted"));
        }
        // A tick no longer than half a beat keeps the leader's look finer than what it looks at.
        let tick = defaults.tick.min(beat / 2);
        Ok(Self {
            database_url: database_url.to_owned().into(),
            redis_url: redis_url.to_owned().into(),
            database_connections: env.parsed("DATABASE_CONNECTIONS", 10)?,
            workspace_store: workspace_store(env)?,
            workspace_bounds: Bounds {
                bytes: env.parsed("WORKSPACE_MAX_BYTES", 1024 * 1024 * 1024)?,
                entries: env.parsed("WORKSPACE_MAX_FILES", 20_000)?,
            },
            event_retention: env.duration("EVENT_RETENTION_SECS", Duration::from_hours(7 * 24))?,
            max_queued_per_user,
            timing: Timing { beat, ttl, tick },
        })
    }

    /// Whether the record is a SQLite file, which only processes of one host can share.
    pub fn is_one_host(&self) -> bool {
        self.database_url.expose_secret().starts_with("sqlite:")
    }
}

/// The folder behind `WORKSPACE_STORE`: a `file://` URL (RFC 8089) with an absolute path and no host, or a
/// path. It is made by whoever first writes to it.
fn workspace_store(env: &Env) -> Result<PathBuf, ConfigError> {
    let text = env.text("WORKSPACE_STORE").unwrap_or("data/workspaces");
    let path = match text.split_once("://") {
        None => text,
        Some(("file", path)) if path.starts_with('/') => path,
        Some(_) => return Err(ConfigError::invalid("WORKSPACE_STORE", "neither a path nor `file:///` and a path")),
    };
    std::path::absolute(path).map_err(|error| ConfigError::invalid("WORKSPACE_STORE", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_conversations_are_in_a_folder() {
        let store = |text| StoreConfig::from_env(&Env::of([("WORKSPACE_STORE", text)])).map(|config| config.workspace_store);

        assert_eq!(store("file:///mnt/shared").expect("a URL"), PathBuf::from("/mnt/shared"));
        assert_eq!(store("/mnt/shared").expect("a path"), PathBuf::from("/mnt/shared"));
        assert!(store("").expect("the default").ends_with("data/workspaces"));
        for wrong in ["file://host/mnt", "s3://bucket/x"] {
            assert!(store(wrong).expect_err(wrong).to_string().starts_with("`WORKSPACE_STORE` is"), "{wrong}");
        }
    }

    #[test]
    fn a_bare_number_is_seconds() {
        let env = Env::of([("WORKER_BEAT", "2"), ("WORKER_TTL", "1500ms"), ("EMPTY", "")]);

        assert_eq!(env.duration("WORKER_BEAT", Duration::ZERO).expect("seconds"), Duration::from_secs(2));
        assert_eq!(env.duration("WORKER_TTL", Duration::ZERO).expect("milliseconds"), Duration::from_millis(1500));
        assert_eq!(env.duration("EMPTY", Duration::from_secs(7)).expect("default"), Duration::from_secs(7));
    }

    #[test]
    fn a_pause_may_be_none() {
        let pause = |text| Env::of([("DRAIN_DELAY", text)]).pause("DRAIN_DELAY");

        for (text, expected) in [("", 0), ("0", 0), ("0s", 0), ("2", 2), ("2s", 2)] {
            assert_eq!(pause(text).expect(text), Duration::from_secs(expected), "{text}");
        }
        assert!(pause("soon").is_err());
    }

    #[test]
    fn what_is_not_a_length_of_time_is_refused_by_name() {
        for wrong in ["0", "-1", "1.5", "ten", "5 m", "1d", "18446744073709551615h"] {
            let env = Env::of([("WORKER_TIMEOUT", wrong)]);
            let error = env.duration("WORKER_TIMEOUT", Duration::ZERO).expect_err(wrong);
            assert!(error.to_string().starts_with("`WORKER_TIMEOUT` is"), "{error}");
        }
    }

    #[test]
    fn clocks_that_contradict_each_other_are_refused() {
        let env = Env::of([("WORKER_BEAT", "3"), ("WORKER_TTL", "10")]);

        assert!(StoreConfig::from_env(&env).is_err());
    }

    #[test]
    fn a_password_never_shows_in_a_debug_print() {
        let env = Env::of([("DATABASE_URL", "postgresql://u:hunter2@db/x"), ("REDIS_URL", "redis://:hunter2@r")]);
        let config = StoreConfig::from_env(&env).expect("valid");

        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
