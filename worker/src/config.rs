//! The worker's settings.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use shared::{
    config::{ConfigError, Env, StoreConfig},
    metrics::MetricsAccess,
    workers::host,
};

use crate::claude::upstream::Credential;

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
    /// Where the MCP servers are named that jobs may use.
    pub mcp_servers_file: Option<PathBuf>,
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
}

/// The longest path of the jobs' folder: a unix socket's path, a few names deeper, holds 107 bytes.
const LONGEST_JOBS_DIR: usize = 75;

impl Config {
    /// Read the settings, or say which one is wrong.
    pub fn from_env(env: &Env) -> Result<Self, ConfigError> {
        let slots = env.parsed("MAX_WORKERS", 5)?;
        if !(1..=1024).contains(&slots) {
            return Err(ConfigError::invalid("MAX_WORKERS", "not between 1 and 1024"));
        }
        Ok(Self {
            store: StoreConfig::from_env(env)?,
            name: env.text("WORKER_NAME").map_or_else(host, str::to_owned),
            slots,
            timeout: env.duration("WORKER_TIMEOUT", Duration::from_mins(10))?,
            idle_timeout: env.duration("IDLE_TIMEOUT", Duration::from_mins(5))?,
            drain_timeout: env.duration("DRAIN_TIMEOUT", Duration::from_secs(30))?,
            jobs_dir: jobs_dir(env)?,
            claude_bin: env.text("CLAUDE_BIN").unwrap_or("claude").into(),
            search_path: env.text("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin").to_owned(),
            default_tools: tools(env)?,
            mcp_servers_file: env.text("MCP_SERVERS_FILE").map(PathBuf::from),
            unsandboxed_tools: env.switch("UNSANDBOXED_TOOLS")?,
            upstream_url: env.text("ANTHROPIC_BASE_URL").unwrap_or("https://api.anthropic.com").to_owned(),
            credential: credential(env)?,
            http: http(env)?,
            metrics: MetricsAccess::from_env(env)?,
        })
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

fn jobs_dir(env: &Env) -> Result<PathBuf, ConfigError> {
    let named = env.text("JOBS_DIR").map_or_else(|| std::env::temp_dir().join("claude-jobs"), PathBuf::from);
    let absolute = std::path::absolute(named).map_err(|error| ConfigError::invalid("JOBS_DIR", error))?;
    if absolute.as_os_str().len() > LONGEST_JOBS_DIR {
        let problem = format!("longer than {LONGEST_JOBS_DIR} bytes, and the path of a unix socket in it would be too long");
        return Err(ConfigError::invalid("JOBS_DIR", problem));
    }
    Ok(absolute)
}

fn tools(env: &Env) -> Result<Vec<String>, ConfigError> {
    let names: Vec<String> = env
        .text("DEFAULT_TOOLS")
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect();
    match names.iter().find(|name| !shared::job::may_be_offered(name)) {
        Some(name) => Err(ConfigError::invalid("DEFAULT_TOOLS", format_args!("not a list of tools that jobs may use: `{name}`"))),
        None => Ok(names),
    }
}

fn http(env: &Env) -> Result<Option<SocketAddr>, ConfigError> {
    let host = env.parsed("WORKER_HTTP_HOST", IpAddr::from(Ipv4Addr::LOCALHOST))?;
    let port = env.text("WORKER_HTTP_PORT").map(|_| env.parsed("WORKER_HTTP_PORT", 0)).transpose()?;
    Ok(port.map(|port| SocketAddr::new(host, port)))
}

fn credential(env: &Env) -> Result<Credential, ConfigError> {
    let key = env.secret("ANTHROPIC_API_KEY").map(Credential::ApiKey);
    let token = || env.secret("ANTHROPIC_AUTH_TOKEN").map(Credential::AuthToken);
    let oauth = || env.secret("CLAUDE_CODE_OAUTH_TOKEN").map(Credential::OauthToken);
    key.or_else(token).or_else(oauth).ok_or(ConfigError::Missing("ANTHROPIC_API_KEY"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let config = Config::from_env(&Env::of([("ANTHROPIC_API_KEY", "sk")])).expect("valid");

        assert_eq!((config.slots, config.timeout, config.idle_timeout), (5, Duration::from_mins(10), Duration::from_mins(5)));
        assert!(config.default_tools.is_empty() && config.http.is_none());
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
        ] {
            let error = Config::from_env(&Env::of([("ANTHROPIC_API_KEY", "sk"), (name, value)])).expect_err(name);
            assert!(error.to_string().starts_with(&format!("`{name}` is")), "{error}");
        }
        let error = Config::from_env(&Env::of([])).expect_err("no credential");
        assert_eq!(error.to_string(), "`ANTHROPIC_API_KEY` is not set");
    }

    #[test]
    fn a_program_is_found_by_name_and_taken_by_path() {
        assert_eq!(find_program("sh".as_ref(), "/nowhere:/bin"), PathBuf::from("/bin/sh"));
        assert_eq!(find_program("/opt/x".as_ref(), "/bin"), PathBuf::from("/opt/x"));
        assert_eq!(find_program("no-such".as_ref(), "/bin"), PathBuf::from("no-such"));
    }
}
