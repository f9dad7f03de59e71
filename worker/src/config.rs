//! The worker's settings.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use secrecy::SecretString;
use shared::{
    config::{self, ConfigError, Env, Reading, StoreConfig},
    metrics::MetricsAccess,
    settings,
    telemetry::TelemetryConfig,
    workers::host,
};

use crate::{
    claude::upstream::{self, Credential},
    mcp::Servers,
};

/// What the environment says.
#[derive(Clone, Debug)]
pub struct Config {
    /// Database, Redis and the protocol's clocks.
    pub store: StoreConfig,
    /// A name for people, the same after a restart.
    pub name: String,
    /// How many jobs run at once.
    pub slots: u32,
    /// The longest run of one attempt.
    pub timeout: Duration,
    /// The longest silence of the CLI while no tool of its runs.
    pub idle_timeout: Duration,
    /// How long a stopping worker lets its jobs run on.
    pub drain_timeout: Duration,
    /// Where the folders of running jobs are.
    pub jobs_dir: PathBuf,
    /// The CLI: a path, or a name to look up on `search_path`.
    pub claude_bin: PathBuf,
    /// Where programs are looked up, for the worker and for tools outside of a sandbox.
    pub search_path: String,
    /// What a job may use that does not say.
    pub default_tools: Vec<String>,
    /// The MCP servers that jobs may use.
    pub mcp: Servers,
    /// Whether tools may run where no sandbox works.
    pub unsandboxed_tools: bool,
    /// The model's API.
    pub upstream_url: String,
    /// What opens it.
    pub credential: Credential,
    /// Where to answer questions about this worker, if anywhere: `WORKER_HTTP_HOST` and `WORKER_HTTP_PORT`.
    pub http: Option<SocketAddr>,
    /// Who may read the metrics there.
    pub metrics: MetricsAccess,
    /// What is told of this process.
    pub telemetry: TelemetryConfig,
}

/// The longest path of the jobs' folder: a unix socket's path, a few names deeper, holds 107 bytes.
const LONGEST_JOBS_DIR: usize = 75;

impl Config {
    /// Read the settings, or say which ones are wrong. `search_path` is where programs are looked up.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let search_path = env.text("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
        config::read(env, |reading| Self::read(reading, search_path))
    }

    fn read(reading: &Reading<'_>, search_path: &str) -> Self {
        Self {
            store: StoreConfig::read(reading),
            name: reading.text(&settings::WORKER_NAME).map_or_else(host, str::to_owned),
            slots: reading.within(&settings::MAX_WORKERS, 1..=1024),
            timeout: reading.duration(&settings::WORKER_TIMEOUT),
            idle_timeout: reading.duration(&settings::IDLE_TIMEOUT),
            drain_timeout: reading.duration(&settings::DRAIN_TIMEOUT),
            jobs_dir: jobs_dir(reading),
            claude_bin: reading.text(&settings::CLAUDE_BIN).unwrap_or("claude").into(),
            search_path: search_path.to_owned(),
            default_tools: reading.maybe(&settings::DEFAULT_TOOLS, tools).unwrap_or_default(),
            mcp: reading.maybe(&settings::MCP_SERVERS_FILE, mcp).unwrap_or_default(),
            unsandboxed_tools: reading.switch(&settings::UNSANDBOXED_TOOLS),
            upstream_url: upstream_url(reading),
            credential: credential(reading),
            http: http(reading),
            metrics: MetricsAccess::read(reading),
            telemetry: TelemetryConfig::read(reading),
        }
    }

    /// Settings that are not wrong and cannot do what they are there for, a sentence each.
    pub fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.idle_timeout >= self.timeout {
            found.push(format!(
                "`IDLE_TIMEOUT` ({:?}) is not shorter than `WORKER_TIMEOUT` ({:?}): no silence of a CLI is ever noticed",
                self.idle_timeout, self.timeout
            ));
        }
        if self.drain_timeout > self.timeout {
            found.push(format!(
                "`DRAIN_TIMEOUT` ({:?}) is longer than `WORKER_TIMEOUT` ({:?}): no attempt runs that long",
                self.drain_timeout, self.timeout
            ));
        }
        if self.store.timing.ttl > self.timeout {
            found.push(format!(
                "`WORKER_TTL` ({:?}) is longer than `WORKER_TIMEOUT` ({:?}): the jobs of a dead worker wait longer than they would have run",
                self.store.timing.ttl, self.timeout
            ));
        }
        found
    }

    /// The CLI's absolute path, where it is found; else what was asked for.
    pub fn find_claude(&self) -> PathBuf {
        find_program(&self.claude_bin, &self.search_path)
    }
}

/// A program by its path, or by its name on `search_path`.
pub fn find_program(program: &std::path::Path, search_path: &str) -> PathBuf {
    let is_path = program.components().count() > 1 || program.is_absolute();
    if is_path {
        return std::path::absolute(program).unwrap_or_else(|_| program.to_owned());
    }
    let found = std::env::split_paths(search_path).map(|directory| directory.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| program.to_owned())
}

fn jobs_dir(reading: &Reading<'_>) -> PathBuf {
    let absolute = |path: &str| {
        let absolute = std::path::absolute(path).map_err(|error| error.to_string())?;
        if absolute.as_os_str().len() > LONGEST_JOBS_DIR {
            return Err(format!("longer than {LONGEST_JOBS_DIR} bytes, and the path of a unix socket in it would be too long"));
        }
        Ok(absolute)
    };
    reading.maybe(&settings::JOBS_DIR, absolute).unwrap_or_else(|| {
        let path = std::env::temp_dir().join("claude-jobs");
        if path.as_os_str().len() > LONGEST_JOBS_DIR {
            reading.complain(&settings::JOBS_DIR, "not set, and the system's temporary folder has too long a name");
        }
        path
    })
}

fn tools(list: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match names.iter().find(|name| !shared::job::may_be_offered(name)) {
        Some(name) => Err(format!("not a list of tools that jobs may use: `{name}`")),
        None => Ok(names),
    }
}

fn mcp(path: &str) -> Result<Servers, String> {
    Servers::load(path.as_ref()).map_err(|error| format!("a file that cannot be used: {:#}", anyhow::Error::from(error)))
}

fn http(reading: &Reading<'_>) -> Option<SocketAddr> {
    let host = reading.parsed(&settings::WORKER_HTTP_HOST);
    reading.maybe(&settings::WORKER_HTTP_PORT, config::parse).map(|port| SocketAddr::new(host, port))
}

fn upstream_url(reading: &Reading<'_>) -> String {
    let url = reading.maybe(&settings::ANTHROPIC_BASE_URL, |url| upstream::check(url).map(|()| url.to_owned()));
    url.unwrap_or_else(|| "https://api.anthropic.com".to_owned())
}

/// The first of the credentials that is there.
fn credential(reading: &Reading<'_>) -> Credential {
    let sendable = |setting| reading.maybe(setting, |text| upstream::check_credential(text).map(|()| SecretString::from(text)));
    let key = sendable(&settings::ANTHROPIC_API_KEY).map(Credential::ApiKey);
    let token = sendable(&settings::ANTHROPIC_AUTH_TOKEN).map(Credential::AuthToken);
    let oauth = sendable(&settings::CLAUDE_CODE_OAUTH_TOKEN).map(Credential::OauthToken);
    key.or(token).or(oauth).unwrap_or_else(|| {
        if reading.are_right(&[&settings::ANTHROPIC_AUTH_TOKEN, &settings::CLAUDE_CODE_OAUTH_TOKEN]) {
            // Unless it is there and something else is wrong with it, which was said first.
            reading.complain(&settings::ANTHROPIC_API_KEY, "not set");
        }
        Credential::ApiKey(SecretString::default())
    })
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeSet};

    use super::*;

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = Config::from_env(&Env::of([("ANTHROPIC_API_KEY", "sk")])).expect("valid");

        assert_eq!((config.slots, config.timeout, config.idle_timeout), (5, Duration::from_mins(10), Duration::from_mins(5)));
        assert!(config.default_tools.is_empty() && config.http.is_none());
    }

    #[test]
    fn what_is_read_is_what_the_table_has() {
        let asked = RefCell::default();
        let read = |reading: &Reading<'_>| {
            let config = Config::read(reading, "/bin");
            asked.replace(reading.asked().into_iter().collect::<BTreeSet<_>>());
            config
        };

        config::read(&Env::of([("ANTHROPIC_API_KEY", "sk")]), read).expect("valid");

        let table = settings::ALL.iter().filter(|setting| setting.reader.is_of(settings::Reader::Worker)).map(|setting| setting.name);
        assert_eq!(asked.into_inner(), table.collect());
    }

    #[test]
    fn settings_that_defeat_each_other_are_told_by_name() {
        let contradictions = |name, value| {
            let env = Env::of([("ANTHROPIC_API_KEY", "sk"), (name, value)]);
            Config::from_env(&env).expect("valid").contradictions()
        };

        assert_eq!(contradictions("IDLE_TIMEOUT", "5m"), Vec::<String>::new());
        for (name, value, told) in [
            ("IDLE_TIMEOUT", "10m", &["`IDLE_TIMEOUT` (600s) is not shorter than `WORKER_TIMEOUT` (600s)"][..]),
            ("DRAIN_TIMEOUT", "11m", &["`DRAIN_TIMEOUT` (660s) is longer than `WORKER_TIMEOUT` (600s)"]),
            ("WORKER_TTL", "11m", &["`WORKER_TTL` (660s) is longer than `WORKER_TIMEOUT` (600s)"]),
            ("WORKER_TIMEOUT", "1m", &["`IDLE_TIMEOUT` (300s)"]),
        ] {
            let found = contradictions(name, value);
            assert!(found.len() == told.len() && found.iter().zip(told).all(|(found, told)| found.starts_with(told)), "{found:?}");
        }
    }

    #[test]
    fn a_port_is_opened_on_this_host_unless_another_is_named() {
        let http = |host| {
            let env = Env::of([("ANTHROPIC_API_KEY", "sk"), ("WORKER_HTTP_PORT", "9090"), ("WORKER_HTTP_HOST", host)]);
            Config::from_env(&env).expect("valid").http.map(|address| address.to_string())
        };

        assert_eq!(http(""), Some("127.0.0.1:9090".to_owned()));
        assert_eq!(http("::"), Some("[::]:9090".to_owned()));
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let long = "/".repeat(LONGEST_JOBS_DIR).replace('/', "/x");
        for (name, value) in [
            ("MAX_WORKERS", "0"),
            ("DEFAULT_TOOLS", "Read,CronCreate"),
            ("DEFAULT_TOOLS", "a b"),
            ("JOBS_DIR", &long),
            ("WORKER_HTTP_PORT", "x"),
            ("ANTHROPIC_BASE_URL", "https://u:hunter2@api"),
            ("ANTHROPIC_API_KEY", "hunter2\n"),
            ("MCP_SERVERS_FILE", "/nowhere/servers.json"),
        ] {
            let error = Config::from_env(&Env::of([("ANTHROPIC_AUTH_TOKEN", "sk"), (name, value)])).expect_err(name).to_string();
            assert!(error.starts_with("1 setting ") && error.contains(&format!("  `{name}` is ")), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = Config::from_env(&Env::of([])).expect_err("no credential").to_string();
        assert!(error.starts_with("1 setting cannot be used:\n  `ANTHROPIC_API_KEY` is not set (hint: "), "{error}");
    }

    #[test]
    fn a_program_is_found_by_name_and_taken_by_path() {
        assert_eq!(find_program("sh".as_ref(), "/nowhere:/bin"), PathBuf::from("/bin/sh"));
        assert_eq!(find_program("/opt/x".as_ref(), "/bin"), PathBuf::from("/opt/x"));
        assert_eq!(find_program("no-such".as_ref(), "/bin"), PathBuf::from("no-such"));
    }
}
