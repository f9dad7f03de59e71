//! This binary's settings. Everything is read and judged at the start: a server that runs has a usable
//! configuration. Of the key only its SHA-256 is kept.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use shared::config::{ConfigError, Env, ExposeSecret, StoreConfig};

use crate::{auth::KeyHash, client_address::TrustedProxies, cors::Origin, models::Models};

/// The shortest key that guards anything.
const MIN_KEY_LENGTH: usize = 16;
/// What `AUTH_RATE_LIMIT_PER_MINUTE` is when nobody says so.
const DEFAULT_AUTH_RATE_LIMIT: NonZeroU32 = NonZeroU32::new(20).expect("twenty");

/// How the API listens and what it lets through.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen: `HOST` and `PORT`.
    pub address: SocketAddr,
    /// Whose pages may call us from a browser: `FRONTEND_URL`.
    pub origins: Vec<Origin>,
    /// The key of [`shared::user::BOOTSTRAP_USER`]: `BOOTSTRAP_API_KEY`.
    pub bootstrap_key: KeyHash,
    /// Which models a job may name: `MODELS`.
    pub models: Models,
    /// The largest request body, in bytes: `MAX_BODY_BYTES`.
    pub max_body_bytes: usize,
    /// The most connections at a time: `MAX_CONNECTIONS`.
    pub max_connections: usize,
    /// The most connections of one address at a time: `MAX_CONNECTIONS_PER_ADDRESS`.
    pub max_connections_per_address: usize,
    /// Which peers speak for others: `TRUSTED_PROXIES`.
    pub trusted_proxies: TrustedProxies,
    /// The requests an hour of a user who has no number of their own: `DEFAULT_RATE_LIMIT_PER_HOUR`.
    pub default_rate_limit_per_hour: u32,
    /// How many processes like this one share the work: `API_REPLICAS`.
    pub replicas: NonZeroU32,
    /// How often a minute one address may try to log in, to register, to renew a login:
    /// `AUTH_RATE_LIMIT_PER_MINUTE`.
    pub auth_rate_limit_per_minute: NonZeroU32,
    /// How long requests may take to finish once the server was told to stop: `DRAIN_TIMEOUT`.
    pub drain_timeout: Duration,
    /// The database and Redis.
    pub store: StoreConfig,
}

impl Config {
    /// Read the settings, or say which one is wrong.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let host = env.parsed("HOST", IpAddr::from(Ipv4Addr::LOCALHOST))?;
        let port = env.parsed("PORT", 3001)?;
        Ok(Self {
            address: SocketAddr::new(host, port),
            origins: origins(env.text("FRONTEND_URL").unwrap_or("http://localhost:3030"))?,
            bootstrap_key: bootstrap_key(env)?,
            models: Models::of(env.text("MODELS")),
            max_body_bytes: at_least_one(env, "MAX_BODY_BYTES", 1024 * 1024)?,
            max_connections: at_least_one(env, "MAX_CONNECTIONS", 20_000)?,
            max_connections_per_address: at_least_one(env, "MAX_CONNECTIONS_PER_ADDRESS", 1_000)?,
            trusted_proxies: env.parsed("TRUSTED_PROXIES", TrustedProxies::default())?,
            default_rate_limit_per_hour: env.parsed("DEFAULT_RATE_LIMIT_PER_HOUR", 1_000)?,
            replicas: env.parsed("API_REPLICAS", NonZeroU32::MIN)?,
            auth_rate_limit_per_minute: env.parsed("AUTH_RATE_LIMIT_PER_MINUTE", DEFAULT_AUTH_RATE_LIMIT)?,
            drain_timeout: env.duration("DRAIN_TIMEOUT", Duration::from_secs(30))?,
            store: StoreConfig::from_env(env)?,
        })
    }
}

fn bootstrap_key(env: &Env) -> Result<KeyHash, ConfigError> {
    let key = env.secret("BOOTSTRAP_API_KEY").ok_or(ConfigError::Missing("BOOTSTRAP_API_KEY"))?;
    if key.expose_secret().len() < MIN_KEY_LENGTH {
        let problem = format!("shorter than {MIN_KEY_LENGTH} characters (hint: `openssl rand -hex 32` makes a good one)");
        return Err(ConfigError::invalid("BOOTSTRAP_API_KEY", problem));
    }
    Ok(KeyHash::of(key.expose_secret().as_bytes()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_missing_or_short_stops_the_start() {
        assert_eq!(Config::from_env(&Env::of([])).expect_err("no key").to_string(), "`BOOTSTRAP_API_KEY` is not set");

        let error = Config::from_env(&Env::of([("BOOTSTRAP_API_KEY", "hunter2")])).expect_err("short key").to_string();
        assert!(error.contains("16 characters") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn the_defaults_are_those_of_the_documentation() {
        let config = Config::from_env(&Env::of([("BOOTSTRAP_API_KEY", "0123456789abcdef")])).expect("valid");

        assert_eq!(config.address.to_string(), "127.0.0.1:3001");
        assert_eq!(config.origins, ["http://localhost:3030".parse().expect("an origin")]);
        assert_eq!((config.max_body_bytes, config.max_connections), (1024 * 1024, 20_000));
        assert!(!format!("{config:?}").contains("0123456789abcdef"));
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
            ("DEFAULT_RATE_LIMIT_PER_HOUR", "-1"),
            ("API_REPLICAS", "0"),
            ("AUTH_RATE_LIMIT_PER_MINUTE", "0"),
        ] {
            let env = Env::of([("BOOTSTRAP_API_KEY", "0123456789abcdef"), (name, value)]);
            let error = Config::from_env(&env).expect_err(name).to_string();
            assert!(error.starts_with(&format!("`{name}` is")), "{error}");
        }
    }
}
