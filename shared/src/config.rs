//! Settings from the environment. Each binary reads its own in its `config.rs`, through a [`Reading`] of the [`Env`]; here
//! are the readers and the settings both share. What cannot be read is noted, and all of it stops the start at once;
//! secrets stay inside [`SecretString`] and never show in a debug print nor in what is said of them.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    fmt::{self, Display},
    ops::RangeBounds,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

pub use secrecy::{ExposeSecret, SecretString};

use crate::{
    redis,
    settings::{self, Setting},
    workspace::Bounds,
};

/// Settings that are missing or cannot be used: all of them.
#[derive(Debug)]
pub struct ConfigError(Vec<Problem>);

/// What is wrong with a setting, without its value: it may be a secret.
#[derive(Debug)]
struct Problem {
    setting: &'static Setting,
    what: String,
}

impl std::error::Error for ConfigError {}

impl Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [_] => f.write_str("1 setting cannot be used:")?,
            all => write!(f, "{} settings cannot be used:", all.len())?,
        }
        for Problem { setting, what } in &self.0 {
            write!(f, "\n  `{}` is {what} (hint: {})", setting.name, setting.form)?;
        }
        Ok(())
    }
}

/// The variables a process was started with. An empty value counts as absent.
#[derive(Clone, Debug, Default)]
pub struct Env {
    texts: HashMap<String, String>,
    /// Those whose values are no texts.
    unreadable: HashSet<String>,
}

impl Env {
    /// This process's own variables.
    pub fn of_process() -> Self {
        let mut env = Self::default();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => drop(env.texts.insert(name, value)),
                Err(_) => drop(env.unreadable.insert(name)),
            }
        }
        env
    }

    /// The given variables alone.
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Self {
        let texts = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { texts, unreadable: HashSet::new() }
    }

    /// The value of `name`, if it is there and not empty. For what is no setting of ours.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The names of all that are there.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().chain(&self.unreadable).map(String::as_str)
    }
}

/// Read a configuration by `all`; fails with every setting that cannot be used.
pub fn read<T>(env: &Env, all: impl FnOnce(&Reading<'_>) -> T) -> Result<T, ConfigError> {
    let reading = Reading { env, problems: RefCell::default(), asked: RefCell::default() };
    let config = all(&reading);
    let mut problems = reading.problems.into_inner();
    problems.sort_by_key(|problem| settings::ALL.iter().position(|setting| *setting == problem.setting));
    if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
}

/// One look at all settings. What cannot be read is noted, and answered by something that nobody ever sees: mostly the
/// default.
pub struct Reading<'a> {
    env: &'a Env,
    problems: RefCell<Vec<Problem>>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Reading<'a> {
    /// Note that a setting is `what`. The first thing that is noted of one counts.
    pub fn complain(&self, setting: &'static Setting, what: impl Display) {
        let mut problems = self.problems.borrow_mut();
        if !problems.iter().any(|known| known.setting.name == setting.name) {
            problems.push(Problem { setting, what: what.to_string() });
        }
    }

    /// Whether nothing is wrong with any of these, as far as they were read.
    pub fn are_right(&self, settings: &[&Setting]) -> bool {
        !self.problems.borrow().iter().any(|known| settings.iter().any(|setting| setting.name == known.setting.name))
    }

    /// The settings that were read so far, by name.
    pub fn asked(&self) -> Vec<&'static str> {
        self.asked.borrow().clone()
    }

    /// The value that somebody set.
    fn set(&self, setting: &'static Setting) -> Option<&'a str> {
        self.asked.borrow_mut().push(setting.name);
        if self.env.unreadable.contains(setting.name) {
            self.complain(setting, "not Unicode");
        }
        self.env.text(setting.name)
    }

    /// The value of `setting`, or its default; `None` where it has none.
    pub fn text(&self, setting: &'static Setting) -> Option<&'a str> {
        self.set(setting).or(Some(setting.default)).filter(|text| !text.is_empty())
    }

    /// The value of `setting`, kept out of debug prints.
    pub fn secret(&self, setting: &'static Setting) -> Option<SecretString> {
        self.text(setting).map(SecretString::from)
    }

    /// The value of `setting` as `read` reads it, or `None` where it is absent or wrong.
    pub fn maybe<T, E: Display>(&self, setting: &'static Setting, read: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        read(self.text(setting)?).map_err(|what| self.complain(setting, what)).ok()
    }

    /// The value of `setting`, which has a default, as `read` reads it.
    pub fn one<T, E: Display>(&self, setting: &'static Setting, read: impl Fn(&str) -> Result<T, E>) -> T {
        if let Some(value) = self.set(setting) {
            match read(value) {
                Ok(value) => return value,
                Err(what) => self.complain(setting, what),
            }
        }
        read(setting.default).unwrap_or_else(|what| panic!("the default of `{}` is {what}", setting.name))
    }

    /// The value of `setting` as a `T`.
    pub fn parsed<T: FromStr<Err: Display>>(&self, setting: &'static Setting) -> T {
        self.one(setting, parse)
    }

    /// The same, where it is within `bounds`.
    pub fn within<T: FromStr<Err: Display> + PartialOrd>(&self, setting: &'static Setting, bounds: impl RangeBounds<T>) -> T {
        let is_within = |value: T| if bounds.contains(&value) { Ok(value) } else { Err("out of bounds".to_owned()) };
        self.one(setting, |text| parse(text).and_then(is_within))
    }

    /// The value of `setting` as one of `words`.
    pub fn word<T: Copy>(&self, setting: &'static Setting, words: &[(&str, T)]) -> T {
        self.one(setting, |text| words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or("none of the words it may be"))
    }

    /// The value of `setting` as a switch.
    pub fn switch(&self, setting: &'static Setting) -> bool {
        self.word(setting, &[("0", false), ("false", false), ("1", true), ("true", true)])
    }

    /// The value of `setting` as a length of time. A bare number counts seconds; `500ms`, `30s`, `5m` and `2h` are
    /// understood. Zero is refused.
    pub fn duration(&self, setting: &'static Setting) -> Duration {
        self.one(setting, |text| parse_duration(text.trim()).filter(|duration| !duration.is_zero()).ok_or("not a length of time"))
    }

    /// The same, and none at all where it is `0`.
    pub fn pause(&self, setting: &'static Setting) -> Duration {
        self.one(setting, |text| parse_duration(text.trim()).ok_or("not a length of time"))
    }
}

/// `text` as a `T`, or what is wrong with it.
pub fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|error| format!("not readable: {error}"))
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
    /// What the workspaces of one user may hold together, in bytes.
    pub workspaces_per_user: u64,
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
    /// Read what every process that opens the stores needs.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        read(env, Self::read)
    }

    /// The same, as a part of more.
    pub fn read(reading: &Reading<'_>) -> Self {
        // A tick no longer than half a beat keeps the leader's look finer than what it looks at.
        let (beat, ttl) = (reading.duration(&settings::WORKER_BEAT), reading.duration(&settings::WORKER_TTL));
        let tick = Timing::default().tick.min(beat / 2);
        if ttl < beat * 4 && reading.are_right(&[&settings::WORKER_BEAT, &settings::WORKER_TTL]) {
            reading.complain(&settings::WORKER_TTL, "less than four times `WORKER_BEAT`: a slow beat would look like a death");
        }
        Self {
            database_url: reading.one(&settings::DATABASE_URL, database_url),
            redis_url: reading.one(&settings::REDIS_URL, redis_url),
            database_connections: reading.within(&settings::DATABASE_CONNECTIONS, 1..=10_000),
            workspace_store: reading.one(&settings::WORKSPACE_STORE, workspace_store),
            workspace_bounds: Bounds {
                bytes: reading.parsed(&settings::WORKSPACE_MAX_BYTES),
                entries: reading.parsed(&settings::WORKSPACE_MAX_FILES),
            },
            workspaces_per_user: reading.parsed(&settings::WORKSPACES_MAX_BYTES_PER_USER),
            event_retention: reading.duration(&settings::EVENT_RETENTION_SECS),
            max_queued_per_user: reading.within(&settings::MAX_QUEUED_PER_USER, 1..),
            timing: Timing { beat, ttl, tick },
        }
    }

    /// Whether the record is a SQLite file, which only processes of one host can share.
    pub fn is_one_host(&self) -> bool {
        self.database_url.expose_secret().starts_with("sqlite:")
    }
}

fn database_url(text: &str) -> Result<SecretString, &'static str> {
    let is_known = ["postgresql://", "postgres://", "sqlite:"].iter().any(|scheme| text.starts_with(scheme));
    if is_known { Ok(text.into()) } else { Err("not a `postgresql://` or `sqlite://` address") }
}

fn redis_url(text: &str) -> Result<SecretString, &'static str> {
    // What the client says about it may repeat it.
    if redis::is_address(text) { Ok(text.into()) } else { Err("not an address of Redis") }
}

/// The folder behind `WORKSPACE_STORE`: a `file://` URL (RFC 8089) with an absolute path and no host, or a
/// path. It is made by whoever first writes to it.
fn workspace_store(text: &str) -> Result<PathBuf, String> {
    let path = match text.split_once("://") {
        None => text,
        Some(("file", path)) if path.starts_with('/') => path,
        Some(_) => return Err("neither a path nor `file:///` and a path".to_owned()),
    };
    std::path::absolute(path).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads<T>(variables: [(&str, &str); 1], read_one: impl FnOnce(&Reading<'_>) -> T) -> Result<T, String> {
        read(&Env::of(variables), read_one).map_err(|error| error.to_string())
    }

    #[test]
    fn every_wrong_setting_is_told_at_once_with_a_hint() {
        let env = Env::of([("DATABASE_URL", "mysql://hunter2"), ("WORKER_TTL", "soon"), ("MAX_QUEUED_PER_USER", "0")]);

        let error = StoreConfig::from_env(&env).expect_err("three are wrong").to_string();

        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines[0], "3 settings cannot be used:");
        assert!(lines[1].starts_with("  `DATABASE_URL` is not a `postgresql://`"), "{error}");
        assert_eq!(
            lines[2],
            "  `WORKER_TTL` is not a length of time (hint: a length of time, at least four times `WORKER_BEAT`, as `10s`)"
        );
        assert!(lines[3].starts_with("  `MAX_QUEUED_PER_USER` is out of bounds (hint: "), "{error}");
        assert!(lines.len() == 4 && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn one_wrong_setting_is_one() {
        let error = reads([("REDIS_URL", "nowhere")], StoreConfig::read).expect_err("wrong");

        assert!(error.starts_with("1 setting cannot be used:\n  `REDIS_URL` is not an address of Redis (hint: "), "{error}");
    }

    #[test]
    fn every_default_that_both_read_is_readable() {
        assert!(StoreConfig::from_env(&Env::default()).is_ok());
        assert_eq!(StoreConfig::from_env(&Env::default()).expect("defaults").timing, Timing::default());
    }

    #[test]
    fn the_files_of_conversations_are_in_a_folder() {
        let store = |text| reads([("WORKSPACE_STORE", text)], StoreConfig::read).map(|config| config.workspace_store);

        assert_eq!(store("file:///mnt/shared").expect("a URL"), PathBuf::from("/mnt/shared"));
        assert_eq!(store("/mnt/shared").expect("a path"), PathBuf::from("/mnt/shared"));
        assert!(store("").expect("the default").ends_with("data/workspaces"));
        for wrong in ["file://host/mnt", "s3://bucket/x"] {
            assert!(store(wrong).expect_err(wrong).contains("`WORKSPACE_STORE` is neither"), "{wrong}");
        }
    }

    #[test]
    fn a_bare_number_is_seconds() {
        let of = |text| reads([("DRAIN_TIMEOUT", text)], |reading| reading.duration(&settings::DRAIN_TIMEOUT));

        assert_eq!(of("2"), Ok(Duration::from_secs(2)));
        assert_eq!(of("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(of(""), Ok(Duration::from_secs(30)));
    }

    #[test]
    fn a_pause_may_be_none() {
        let pause = |text| reads([("DRAIN_DELAY", text)], |reading| reading.pause(&settings::DRAIN_DELAY));

        for (text, expected) in [("", 0), ("0", 0), ("0s", 0), ("2", 2), ("2s", 2)] {
            assert_eq!(pause(text).expect(text), Duration::from_secs(expected), "{text}");
        }
        assert!(pause("soon").is_err());
    }

    #[test]
    fn what_is_not_a_length_of_time_is_refused_by_name() {
        for wrong in ["0", "-1", "1.5", "ten", "5 m", "1d", "18446744073709551615h"] {
            let error = reads([("WORKER_TIMEOUT", wrong)], |reading| reading.duration(&settings::WORKER_TIMEOUT)).expect_err(wrong);
            assert!(error.contains("`WORKER_TIMEOUT` is not a length of time"), "{error}");
        }
    }

    #[test]
    fn clocks_that_contradict_each_other_are_refused() {
        let env = Env::of([("WORKER_BEAT", "3"), ("WORKER_TTL", "10")]);

        assert!(StoreConfig::from_env(&env).expect_err("too short").to_string().contains("`WORKER_TTL` is less than four times"));
    }

    #[test]
    fn what_is_no_text_is_told_and_never_shown() {
        let env = Env { texts: HashMap::new(), unreadable: HashSet::from(["REDIS_URL".to_owned()]) };

        let error = StoreConfig::from_env(&env).expect_err("no text").to_string();

        assert!(error.contains("`REDIS_URL` is not Unicode"), "{error}");
    }

    #[test]
    fn a_password_never_shows_in_a_debug_print() {
        let env = Env::of([("DATABASE_URL", "postgresql://u:hunter2@db/x"), ("REDIS_URL", "redis://:hunter2@r")]);
        let config = StoreConfig::from_env(&env).expect("valid");

        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
