//! This binary's settings. Everything is read and judged at the start: a server that runs has a usable
//! configuration.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use shared::{
    config::{ConfigError, Env, ExposeSecret as _, StoreConfig},
    job::NanoUsd,
    metrics::MetricsAccess,
    user::Email,
};

use crate::{
    client_address::TrustedProxies,
    cors::Origin,
    models::Models,
    password::{MAX_CHARS, MIN_CHARS, Password},
    token::Secrets,
};
/// What `AUTH_RATE_LIMIT_PER_MINUTE` is when nobody says so.
const DEFAULT_AUTH_RATE_LIMIT: NonZeroU32 = NonZeroU32::new(20).expect("twenty");

/// How the API listens and what it lets through.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen: `HOST` and `PORT`.
    pub address: SocketAddr,
    /// Whose pages may call us from a browser: `FRONTEND_URL`.
    pub origins: Vec<Origin>,
    /// What signs access tokens: `JWT_SECRET`.
    pub jwt_secrets: Secrets,
    /// Who may make themselves an account: `REGISTRATION`.
    pub registration: Registration,
    /// From where the first admin may register: `BOOTSTRAP_ADMIN`.
    pub bootstrap: Bootstrap,
    /// The admin to make where there is none: `ADMIN_EMAIL` and `ADMIN_PASSWORD`.
    pub first_admin: Option<FirstAdmin>,
    /// What the jobs of somebody who registered may cost a day: `DEFAULT_DAILY_BUDGET_USD`.
    pub default_daily_budget: NanoUsd,
    /// Which models a job may name: `MODELS`.
    pub models: Models,
    /// The largest request body, in bytes: `MAX_BODY_BYTES`.
    pub max_body_bytes: usize,
    /// The largest file that is put into a workspace, in bytes: `MAX_FILE_BYTES`.
    pub max_file_bytes: u64,
    /// The most connections at a time: `MAX_CONNECTIONS`.
    pub max_connections: usize,
    /// The most connections of one address at a time: `MAX_CONNECTIONS_PER_ADDRESS`.
    pub max_connections_per_address: usize,
    /// The most sockets of one user at a time, in this process: `MAX_SOCKETS_PER_USER`.
    pub max_sockets_per_user: usize,
    /// The most jobs that one socket follows at a time: `MAX_SUBSCRIPTIONS_PER_SOCKET`.
    pub max_subscriptions_per_socket: usize,
    /// Which peers speak for others: `TRUSTED_PROXIES`.
    pub trusted_proxies: TrustedProxies,
    /// The requests an hour of a user who has no number of their own: `DEFAULT_RATE_LIMIT_PER_HOUR`.
    pub default_rate_limit_per_hour: u32,
    /// How many processes like this one share the work: `API_REPLICAS`.
    pub replicas: NonZeroU32,
    /// How often a minute one address may try to log in, to register, to renew a login:
    /// `AUTH_RATE_LIMIT_PER_MINUTE`.
    pub auth_rate_limit_per_minute: NonZeroU32,
    /// What a job keeps of its owner's daily budget when it names no `max_budget_usd`:
    /// `DEFAULT_JOB_BUDGET_USD`.
    pub default_job_budget: NanoUsd,
    /// Whether jobs are accepted while Redis is away: `SUBMIT_WITHOUT_REDIS`.
    pub without_redis: WithoutRedis,
    /// How long everything is served on, but for the readiness, once the server was told to stop: `DRAIN_DELAY`.
    pub drain_delay: Duration,
    /// How long requests may take to finish once the server was told to stop: `DRAIN_TIMEOUT`.
    pub drain_timeout: Duration,
    /// Who may read the metrics: `METRICS_TOKEN` and `METRICS_PUBLIC`.
    pub metrics: MetricsAccess,
    /// The database and Redis.
    pub store: StoreConfig,
}

/// What becomes of a job that is sent while Redis is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutRedis {
    /// It is accepted, and runs once Redis is back.
    Accept,
    /// It is refused.
    Refuse,
}

/// Who may make themselves an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Anybody.
    Open,
    /// Nobody: admins make the accounts.
    Closed,
}

/// From where the first admin may register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// From this machine, and not through a proxy.
    Local,
    /// From anywhere.
    Open,
}

/// An admin to make at the start.
#[derive(Clone, Debug)]
pub struct FirstAdmin {
    /// The address to log in with.
    pub email: Email,
    /// The password to log in with.
    pub password: Password,
}

impl Config {
    /// Read the settings, or say which one is wrong.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let host = env.parsed("HOST", IpAddr::from(Ipv4Addr::LOCALHOST))?;
        let port = env.parsed("PORT", 3001)?;
        Ok(Self {
            address: SocketAddr::new(host, port),
            origins: origins(env.text("FRONTEND_URL").unwrap_or("http://localhost:3030"))?,
            jwt_secrets: jwt_secrets(env)?,
            registration: one_of(
                env,
                "REGISTRATION",
                Registration::Open,
                &[("open", Registration::Open), ("closed", Registration::Closed)],
            )?,
            bootstrap: one_of(env, "BOOTSTRAP_ADMIN", Bootstrap::Local, &[("open", Bootstrap::Open)])?,
            first_admin: first_admin(env)?,
            default_daily_budget: usd(env, "DEFAULT_DAILY_BUDGET_USD", 5.0)?,
            models: Models::of(env.text("MODELS")),
            max_body_bytes: at_least_one(env, "MAX_BODY_BYTES", 1024 * 1024)?,
            max_file_bytes: env.parsed("MAX_FILE_BYTES", 32 * 1024 * 1024)?,
            max_connections: at_least_one(env, "MAX_CONNECTIONS", 20_000)?,
            max_connections_per_address: at_least_one(env, "MAX_CONNECTIONS_PER_ADDRESS", 1_000)?,
            max_sockets_per_user: at_least_one(env, "MAX_SOCKETS_PER_USER", 100)?,
            max_subscriptions_per_socket: at_least_one(env, "MAX_SUBSCRIPTIONS_PER_SOCKET", 100)?,
            trusted_proxies: env.parsed("TRUSTED_PROXIES", TrustedProxies::default())?,
            default_rate_limit_per_hour: env.parsed("DEFAULT_RATE_LIMIT_PER_HOUR", 1_000)?,
            replicas: env.parsed("API_REPLICAS", NonZeroU32::MIN)?,
            auth_rate_limit_per_minute: env.parsed("AUTH_RATE_LIMIT_PER_MINUTE", DEFAULT_AUTH_RATE_LIMIT)?,
            default_job_budget: job_budget(env)?,
            without_redis: one_of(
                env,
                "SUBMIT_WITHOUT_REDIS",
                WithoutRedis::Accept,
                &[("accept", WithoutRedis::Accept), ("refuse", WithoutRedis::Refuse)],
            )?,
            drain_delay: env.pause("DRAIN_DELAY")?,
            drain_timeout: env.duration("DRAIN_TIMEOUT", Duration::from_secs(30))?,
            metrics: MetricsAccess::from_env(env)?,
            store: StoreConfig::from_env(env)?,
        })
    }
}

fn jwt_secrets(env: &Env) -> Result<Secrets, ConfigError> {
    let list = env.secret("JWT_SECRET").ok_or(ConfigError::Missing("JWT_SECRET"))?;
    Secrets::of(&list).map_err(|error| ConfigError::invalid("JWT_SECRET", error))
}

fn first_admin(env: &Env) -> Result<Option<FirstAdmin>, ConfigError> {
    let (email, password) = match (env.text("ADMIN_EMAIL"), env.secret("ADMIN_PASSWORD")) {
        (None, None) => return Ok(None),
        (None, Some(_)) => return Err(ConfigError::Missing("ADMIN_EMAIL")),
        (Some(_), None) => return Err(ConfigError::Missing("ADMIN_PASSWORD")),
        (Some(email), Some(password)) => (email, password),
    };
    let email = email.parse().map_err(|error| ConfigError::invalid("ADMIN_EMAIL", error))?;
    let password = Password::new(password.expose_secret());
    if !password.may_be_chosen() {
        return Err(ConfigError::invalid("ADMIN_PASSWORD", format_args!("not {MIN_CHARS} to {MAX_CHARS} characters long")));
    }
    Ok(Some(FirstAdmin { email, password }))
}

fn one_of<T: Copy>(env: &Env, name: &'static str, default: T, words: &[(&str, T)]) -> Result<T, ConfigError> {
    let Some(text) = env.text(name) else { return Ok(default) };
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        ConfigError::invalid(name, format_args!("not {}", words.join(" or ")))
    })
}

fn usd(env: &Env, name: &'static str, default: f64) -> Result<NanoUsd, ConfigError> {
    let usd = env.parsed(name, default)?;
    if usd.is_finite() && usd >= 0.0 { Ok(NanoUsd::from_usd(usd)) } else { Err(ConfigError::invalid(name, "not an amount of money")) }
}

fn origins(list: &str) -> Result<Vec<Origin>, ConfigError> {
    let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(|entry| entry.parse().map_err(|error| ConfigError::invalid("FRONTEND_URL", error))).collect()
}

fn at_least_one(env: &Env, name: &'static str, default: usize) -> Result<usize, ConfigError> {
    match env.parsed(name, default)? {
        0 => Err(ConfigError::invalid(name, "zero")),
        number => Ok(number),
    }
}

/// A job that kept nothing would be held by no budget.
fn job_budget(env: &Env) -> Result<NanoUsd, ConfigError> {
    const NAME: &str = "DEFAULT_JOB_BUDGET_USD";
    match usd(env, NAME, 1.0)? {
        NanoUsd(0) => Err(ConfigError::invalid(NAME, "zero")),
        amount => Ok(amount),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "q7Jp0uYx3kVb8mNz5tRw2cLf6hDs9aGe";

    #[test]
    fn a_secret_that_is_missing_or_weak_stops_the_start() {
        assert_eq!(Config::from_env(&Env::of([])).expect_err("no secret").to_string(), "`JWT_SECRET` is not set");

        for weak in ["hunter2", "changeme-changeme-changeme-changeme"] {
            let error = Config::from_env(&Env::of([("JWT_SECRET", weak)])).expect_err(weak).to_string();
            assert!(error.starts_with("`JWT_SECRET` is ") && !error.contains(weak), "{error}");
        }
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let config = Config::from_env(&Env::of([("JWT_SECRET", SECRET)])).expect("valid");

        assert_eq!(config.address.to_string(), "127.0.0.1:3001");
        assert_eq!(config.origins, ["http://localhost:3030".parse().expect("an origin")]);
        assert_eq!((config.max_body_bytes, config.max_connections), (1024 * 1024, 20_000));
        assert_eq!((config.registration, config.bootstrap), (Registration::Open, Bootstrap::Local));
        assert_eq!((config.without_redis, config.drain_delay), (WithoutRedis::Accept, Duration::ZERO));
        assert!(config.first_admin.is_none());
        assert_eq!((config.default_daily_budget, config.default_job_budget), (NanoUsd(5_000_000_000), NanoUsd(1_000_000_000)));
        assert!(!format!("{config:?}").contains(SECRET));
    }

    #[test]
    fn an_admin_to_make_has_an_address_and_a_password() {
        let with =
            |email, password| Config::from_env(&Env::of([("JWT_SECRET", SECRET), ("ADMIN_EMAIL", email), ("ADMIN_PASSWORD", password)]));

        let config = with("admin@example.com", "hunter2hunter2").expect("valid");
        assert!(config.first_admin.is_some() && !format!("{config:?}").contains("hunter2"));
        for (email, password, wrong) in [
            ("admin@example.com", "", "ADMIN_PASSWORD"),
            ("", "hunter2hunter2", "ADMIN_EMAIL"),
            ("admin", "hunter2hunter2", "ADMIN_EMAIL"),
            ("admin@example.com", "hunter2", "ADMIN_PASSWORD"),
        ] {
            let error = with(email, password).expect_err(wrong).to_string();
            assert!(error.starts_with(&format!("`{wrong}` is ")) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_setting_that_cannot_be_used_is_named() {
        for (name, value) in [
            ("PORT", "66000"),
            ("HOST", "nowhere"),
            ("MAX_BODY_BYTES", "0"),
            ("FRONTEND_URL", "localhost"),
            ("TRUSTED_PROXIES", "10.0.0.0/33"),
            ("MAX_CONNECTIONS_PER_ADDRESS", "0"),
            ("MAX_SOCKETS_PER_USER", "0"),
            ("MAX_SUBSCRIPTIONS_PER_SOCKET", "none"),
            ("DEFAULT_RATE_LIMIT_PER_HOUR", "-1"),
            ("API_REPLICAS", "0"),
            ("AUTH_RATE_LIMIT_PER_MINUTE", "0"),
            ("REGISTRATION", "sometimes"),
            ("BOOTSTRAP_ADMIN", "1"),
            ("SUBMIT_WITHOUT_REDIS", "no"),
            ("DRAIN_DELAY", "soon"),
            ("DEFAULT_DAILY_BUDGET_USD", "-1"),
            ("DEFAULT_DAILY_BUDGET_USD", "NaN"),
            ("DEFAULT_JOB_BUDGET_USD", "-1"),
            ("DEFAULT_JOB_BUDGET_USD", "0"),
        ] {
            let error = Config::from_env(&Env::of([("JWT_SECRET", SECRET), (name, value)])).expect_err(name).to_string();
            assert!(error.starts_with(&format!("`{name}` is")), "{error}");
        }
    }
}
