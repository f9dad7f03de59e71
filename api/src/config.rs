//! This binary's settings. Everything is read and judged at the start: a server that runs has a usable
//! configuration.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use shared::{
    config::{self, ConfigError, Env, Reading, StoreConfig},
    job::NanoUsd,
    metrics::MetricsAccess,
    settings,
    telemetry::TelemetryConfig,
    user::Email,
};

use crate::{
    client_address::TrustedProxies,
    cors::{InvalidOrigin, Origin},
    models::Models,
    password::{MAX_CHARS, MIN_CHARS, Password},
    token::Secrets,
};

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
    /// What is told of this process.
    pub telemetry: TelemetryConfig,
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
    /// Read the settings, or say which ones are wrong.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        config::read(env, Self::read)
    }

    fn read(reading: &Reading<'_>) -> Self {
        Self {
            address: SocketAddr::new(reading.parsed(&settings::HOST), reading.parsed(&settings::PORT)),
            origins: reading.one(&settings::FRONTEND_URL, origins),
            jwt_secrets: jwt_secrets(reading),
            registration: reading.word(&settings::REGISTRATION, &[("open", Registration::Open), ("closed", Registration::Closed)]),
            bootstrap: reading.word(&settings::BOOTSTRAP_ADMIN, &[("", Bootstrap::Local), ("open", Bootstrap::Open)]),
            first_admin: first_admin(reading),
            default_daily_budget: reading.one(&settings::DEFAULT_DAILY_BUDGET_USD, usd),
            models: Models::of(reading.text(&settings::MODELS)),
            max_body_bytes: reading.within(&settings::MAX_BODY_BYTES, 1..),
            max_file_bytes: reading.parsed(&settings::MAX_FILE_BYTES),
            max_connections: reading.within(&settings::MAX_CONNECTIONS, 1..),
            max_connections_per_address: reading.within(&settings::MAX_CONNECTIONS_PER_ADDRESS, 1..),
            max_sockets_per_user: reading.within(&settings::MAX_SOCKETS_PER_USER, 1..),
            max_subscriptions_per_socket: reading.within(&settings::MAX_SUBSCRIPTIONS_PER_SOCKET, 1..),
            trusted_proxies: reading.one(&settings::TRUSTED_PROXIES, str::parse::<TrustedProxies>),
            default_rate_limit_per_hour: reading.parsed(&settings::DEFAULT_RATE_LIMIT_PER_HOUR),
            replicas: reading.parsed(&settings::API_REPLICAS),
            auth_rate_limit_per_minute: reading.parsed(&settings::AUTH_RATE_LIMIT_PER_MINUTE),
            default_job_budget: reading.one(&settings::DEFAULT_JOB_BUDGET_USD, job_budget),
            without_redis: reading
                .word(&settings::SUBMIT_WITHOUT_REDIS, &[("accept", WithoutRedis::Accept), ("refuse", WithoutRedis::Refuse)]),
            drain_delay: reading.pause(&settings::DRAIN_DELAY),
            drain_timeout: reading.duration(&settings::DRAIN_TIMEOUT),
            metrics: MetricsAccess::read(reading),
            telemetry: TelemetryConfig::read(reading),
            store: StoreConfig::read(reading),
        }
    }
}

fn jwt_secrets(reading: &Reading<'_>) -> Secrets {
    let Some(list) = reading.secret(&settings::JWT_SECRET) else {
        reading.complain(&settings::JWT_SECRET, "not set");
        return Secrets::default();
    };
    Secrets::of(&list).unwrap_or_else(|weak| {
        reading.complain(&settings::JWT_SECRET, weak);
        Secrets::default()
    })
}

fn first_admin(reading: &Reading<'_>) -> Option<FirstAdmin> {
    let email = reading.maybe(&settings::ADMIN_EMAIL, str::parse::<Email>);
    let password = reading.maybe(&settings::ADMIN_PASSWORD, |text| {
        let password = Password::new(text);
        if password.may_be_chosen() { Ok(password) } else { Err(format!("not {MIN_CHARS} to {MAX_CHARS} characters long")) }
    });
    let both = [&settings::ADMIN_EMAIL, &settings::ADMIN_PASSWORD];
    match both.map(|setting| reading.text(setting).is_some()) {
        [true, false] => reading.complain(&settings::ADMIN_PASSWORD, "not set"),
        [false, true] => reading.complain(&settings::ADMIN_EMAIL, "not set"),
        [true, true] | [false, false] => {}
    }
    Some(FirstAdmin { email: email?, password: password? })
}

fn origins(list: &str) -> Result<Vec<Origin>, InvalidOrigin> {
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::parse).collect()
}

fn usd(text: &str) -> Result<NanoUsd, String> {
    let usd: f64 = config::parse(text)?;
    if usd.is_finite() && usd >= 0.0 { Ok(NanoUsd::from_usd(usd)) } else { Err("not an amount of money".to_owned()) }
}

/// A job that kept nothing would be held by no budget.
fn job_budget(text: &str) -> Result<NanoUsd, String> {
    match usd(text)? {
        NanoUsd(0) => Err("zero".to_owned()),
        amount => Ok(amount),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use super::*;

    const SECRET: &str = "q7Jp0uYx3kVb8mNz5tRw2cLf6hDs9aGe";

    #[test]
    fn a_secret_that_is_missing_or_weak_stops_the_start() {
        let error = Config::from_env(&Env::of([])).expect_err("no secret").to_string();
        assert_eq!(error, "1 setting cannot be used:\n  `JWT_SECRET` is not set (hint: `openssl rand -base64 33`)");

        for weak in ["hunter2", "changeme-changeme-changeme-changeme"] {
            let error = Config::from_env(&Env::of([("JWT_SECRET", weak)])).expect_err(weak).to_string();
            assert!(error.contains("`JWT_SECRET` is ") && !error.contains(weak), "{error}");
        }
    }

    #[test]
    fn what_is_read_is_what_the_table_has() {
        let asked = RefCell::default();
        let read = |reading: &Reading<'_>| {
            let config = Config::read(reading);
            asked.replace(reading.asked().into_iter().collect::<BTreeSet<_>>());
            config
        };

        config::read(&Env::of([("JWT_SECRET", SECRET)]), read).expect("valid");

        let table = settings::ALL.iter().filter(|setting| setting.reader.is_of(settings::Reader::Api)).map(|setting| setting.name);
        assert_eq!(asked.into_inner(), table.collect());
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once_in_the_order_of_the_table() {
        let env = Env::of([("PORT", "x"), ("LOG_LEVEL", "=="), ("WORKER_BEAT", "x"), ("WORKER_TTL", "1"), ("ADMIN_EMAIL", "a@b.example")]);

        let error = Config::from_env(&env).expect_err("much is wrong").to_string();

        let named: Vec<&str> = error.lines().skip(1).filter_map(|line| line.split('`').nth(1)).collect();
        // Of clocks that cannot be read nobody says that they contradict each other.
        assert_eq!(named, ["LOG_LEVEL", "WORKER_BEAT", "PORT", "JWT_SECRET", "ADMIN_PASSWORD"]);
        assert!(error.starts_with("5 settings cannot be used:\n"), "{error}");
        assert!(
            error.contains("`PORT` is not readable: invalid digit found in string (hint: a number from 0 to 65535, as `3001`)"),
            "{error}"
        );
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
            assert!(error.contains(&format!("  `{wrong}` is ")) && !error.contains("hunter2"), "{error}");
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
            assert!(error.contains(&format!("  `{name}` is ")), "{error}");
        }
    }
}
