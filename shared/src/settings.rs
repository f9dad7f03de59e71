//! Every setting there is: one table, from which the readers have their defaults and their hints. The tables of
//! `docs/operations.md` and the lines of `.env.example` are held against it by a test.

use std::fmt::Write as _;

use crate::config::Env;

/// A variable that is read.
#[derive(Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What it is where nobody says so, as `.env.example` has it. Empty where it is absent then.
    pub default: &'static str,
    /// Who reads it.
    pub reader: Reader,
    /// What of it may be shown.
    pub content: Content,
    /// What a value looks like, with an example: the hint for who has a wrong one.
    pub form: &'static str,
    /// What it is for.
    pub meaning: &'static str,
}

/// Who reads a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// `api` and `worker`.
    Both,
    /// `api`.
    Api,
    /// `worker`.
    Worker,
}

impl Reader {
    /// Whether what `self` reads is read by `other` too.
    pub fn is_of(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

/// What of a setting may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Plain,
    /// An address, but for the password in it.
    Address,
    /// Nothing.
    Secret,
}

/// The table: name, default, who reads it, what of it may be shown; its form; its meaning.
macro_rules! settings {
    ($($name:ident = $default:literal, $reader:ident, $content:ident, $form:literal, $meaning:literal;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`")]
            pub static $name: Setting = Setting {
                name: stringify!($name),
                default: $default,
                reader: Reader::$reader,
                content: Content::$content,
                form: $form,
                meaning: $meaning,
            };
        )*
        /// All of them, in the order of the documentation.
        pub static ALL: &[&Setting] = &[$(&$name),*];
    };
}

settings! {
    DATABASE_URL = "postgresql://postgres:password@localhost:5432/claude_api", Both, Address,
        "`postgresql://user:password@host:5432/name`, or `sqlite://data/claude.db` for one machine",
        "The record: PostgreSQL, or SQLite for one machine.";
    DATABASE_CONNECTIONS = "10", Both, Plain,
        "a number from 1 to 10000, as `10`",
        "The most database connections of one process.";
    REDIS_URL = "redis://localhost:6379", Both, Address,
        "`redis://:password@host:6379`, `rediss://…` or `redis+unix:///path`",
        "The queue and the live events.";
    LOG_LEVEL = "info", Both, Plain,
        "`error`, `warn`, `info`, `debug`, or a filter such as `info,worker=debug`",
        "What is logged.";
    LOG_FORMAT = "text", Both, Plain,
        "`text` or `json`",
        "How it is logged.";
    OTEL_EXPORTER_OTLP_ENDPOINT = "", Both, Address,
        "`http://localhost:4318`",
        "Where spans go, by OTLP over HTTP; nowhere without this or the next.";
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT = "", Both, Address,
        "`http://localhost:4318/v1/traces`",
        "The same, with the path.";
    OTEL_EXPORTER_OTLP_HEADERS = "", Both, Secret,
        "`name=value` pairs separated by commas, as `authorization=Bearer%20…`",
        "What is sent along with spans.";
    OTEL_EXPORTER_OTLP_PROTOCOL = "http/protobuf", Both, Plain,
        "`http/protobuf`, the only one that is spoken here: collectors listen for it on port 4318",
        "How spans are sent.";
    OTEL_SERVICE_NAME = "", Both, Plain,
        "a name, as `claude-api`",
        "What spans say of who made them; `claude-api` and `claude-worker` unless set.";
    OTEL_RESOURCE_ATTRIBUTES = "", Both, Plain,
        "`name=value` pairs separated by commas, as `deployment.environment.name=staging`",
        "What else they say of it.";
    OTEL_TRACES_SAMPLER = "parentbased_always_on", Both, Plain,
        "`always_on`, `always_off`, `traceidratio`, or one of these after `parentbased_`",
        "Which traces are collected.";
    OTEL_TRACES_SAMPLER_ARG = "1", Both, Plain,
        "a number from 0 to 1, as `0.1` for a tenth",
        "How many of them, for the samplers by ratio.";
    OTEL_SDK_DISABLED = "false", Both, Plain,
        "`true` or `false`",
        "Whether no spans are collected, whatever else is set.";
    OTEL_TRACES_EXPORTER = "otlp", Both, Plain,
        "`otlp` or `none`",
        "The same: `none` collects none.";
    DRAIN_TIMEOUT = "30", Both, Plain,
        "a length of time, as `30s` or `5m`",
        "How long work may go on once the process was told to stop. A second signal ends it at once.";
    WORKER_BEAT = "1", Both, Plain,
        "a length of time, as `1s` or `500ms`",
        "How often a worker says that it lives. The same in every process.";
    WORKER_TTL = "10", Both, Plain,
        "a length of time, at least four times `WORKER_BEAT`, as `10s`",
        "How long it may be silent before its jobs go to others. The same in every process.";
    METRICS_TOKEN = "", Both, Secret,
        "at least 16 characters: `openssl rand -hex 32`",
        "Who may read the metrics: whoever shows this as a bearer token; without it, callers on the same host.";
    METRICS_PUBLIC = "0", Both, Plain,
        "`1` or `0`",
        "Whether everybody may, where there is no token.";
    WORKSPACE_STORE = "data/workspaces", Both, Plain,
        "a path, or `file:///path`",
        "Where the files of sessions are kept: the same folder for every api and worker, a shared mount where there are several hosts.";
    WORKSPACE_MAX_BYTES = "1073741824", Both, Plain,
        "a number of bytes, as `1073741824`",
        "What the files of one session may come to, and what a running job may put into its folders.";
    WORKSPACE_MAX_FILES = "20000", Both, Plain,
        "a number, as `20000`",
        "How many files one session may have.";
    WORKSPACES_MAX_BYTES_PER_USER = "10737418240", Both, Plain,
        "a number of bytes, as `10737418240`",
        "What the files of all sessions of one user may come to; a session keeps what it has.";
    EVENT_RETENTION_SECS = "604800", Both, Plain,
        "a length of time, as `604800` or `168h`",
        "How long the events of a job are kept after its end; the job itself stays.";
    MAX_QUEUED_PER_USER = "1000", Both, Plain,
        "a number from 1, as `1000`",
        "The most jobs of one user that wait for a worker; one more is refused with 429 `queue_full`.";

    HOST = "127.0.0.1", Api, Plain,
        "an address of this machine, as `0.0.0.0` for all of them",
        "Where to listen.";
    PORT = "3001", Api, Plain,
        "a number from 0 to 65535, as `3001`",
        "On which port; 0 is any that is free.";
    JWT_SECRET = "", Api, Secret,
        "`openssl rand -base64 33`",
        "Signs access tokens; at least 32 bytes. A list, separated by commas, signs with the first and accepts all: put a new one in front, and drop the old one a quarter of an hour later.";
    ADMIN_EMAIL = "", Api, Plain,
        "an email address, as `admin@example.com`, together with `ADMIN_PASSWORD`",
        "The first admin, made at a start that finds none; never changed by this afterwards.";
    ADMIN_PASSWORD = "", Api, Secret,
        "12 to 256 characters, together with `ADMIN_EMAIL`: `openssl rand -base64 18`",
        "Their password.";
    REGISTRATION = "open", Api, Plain,
        "`open` or `closed`",
        "Who may register: anybody, or whom an admin registers.";
    BOOTSTRAP_ADMIN = "", Api, Plain,
        "`open`, or nothing",
        "`open`: the first admin may register from anywhere. Otherwise only from this machine itself.";
    DEFAULT_DAILY_BUDGET_USD = "5", Api, Plain,
        "an amount in USD, as `5` or `0.5`",
        "What the jobs of somebody who registered themselves may cost in one UTC day.";
    DEFAULT_JOB_BUDGET_USD = "1", Api, Plain,
        "an amount in USD above zero, as `1` or `0.25`",
        "What a job sets aside of its user's daily budget when it names no `max_budget_usd`, and may cost at most.";
    DEFAULT_RATE_LIMIT_PER_HOUR = "1000", Api, Plain,
        "a number, as `1000`",
        "Requests of one user in any 60 minutes, unless the user or the key has a limit of its own.";
    API_REPLICAS = "1", Api, Plain,
        "a number from 1, as `3`",
        "How many api processes there are: each allows its share of the limits while Redis is away.";
    AUTH_RATE_LIMIT_PER_MINUTE = "20", Api, Plain,
        "a number from 1, as `20`",
        "Attempts to log in, to register and to refresh, each, from one address in a minute.";
    TRUSTED_PROXIES = "", Api, Plain,
        "addresses and networks separated by commas, as `10.0.0.0/8, 192.0.2.7`",
        "The proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.";
    FRONTEND_URL = "http://localhost:3030", Api, Plain,
        "origins separated by commas, without a path, as `https://app.example.com`",
        "The origins whose pages may call the API from a browser.";
    MODELS = "", Api, Plain,
        "names separated by commas, as `opus,sonnet`",
        "The models a job may name; the CLI's aliases and every Claude model if empty.";
    MAX_BODY_BYTES = "1048576", Api, Plain,
        "a number of bytes from 1, as `1048576`",
        "The largest request body.";
    MAX_FILE_BYTES = "33554432", Api, Plain,
        "a number of bytes, as `33554432`",
        "The largest file that is uploaded to a session.";
    DRAIN_DELAY = "0", Api, Plain,
        "a length of time, as `10s`, or `0`",
        "How long a server that was told to stop serves on, and says only on `/health/ready` that it stops: longer than your load balancer takes to notice.";
    SUBMIT_WITHOUT_REDIS = "accept", Api, Plain,
        "`accept` or `refuse`",
        "What becomes of jobs that are sent while Redis is away: they run once it is back, or get 503.";
    MAX_CONNECTIONS = "20000", Api, Plain,
        "a number from 1, as `20000`",
        "The most connections at a time.";
    MAX_CONNECTIONS_PER_ADDRESS = "1000", Api, Plain,
        "a number from 1, as `1000`",
        "The most connections of one address at a time; this machine and trusted proxies are not counted.";
    MAX_SOCKETS_PER_USER = "100", Api, Plain,
        "a number from 1, as `100`",
        "The most WebSockets of one user at a time, in each api process.";
    MAX_SUBSCRIPTIONS_PER_SOCKET = "100", Api, Plain,
        "a number from 1, as `100`",
        "The most jobs that one WebSocket follows at a time.";

    ANTHROPIC_API_KEY = "", Worker, Secret,
        "a key of the Anthropic API, or another credential: `ANTHROPIC_AUTH_TOKEN`, `CLAUDE_CODE_OAUTH_TOKEN`",
        "The credential for Claude, one of these three; it stays in the worker, no CLI process ever sees it.";
    ANTHROPIC_AUTH_TOKEN = "", Worker, Secret,
        "a bearer token, without a line end",
        "The same, as a bearer token.";
    CLAUDE_CODE_OAUTH_TOKEN = "", Worker, Secret,
        "what `claude setup-token` prints, without a line end",
        "The same, of a subscription.";
    ANTHROPIC_BASE_URL = "", Worker, Address,
        "`https://api.anthropic.com`, without a user, a query or a fragment",
        "Where the model's API is; Anthropic's own if empty.";
    CLAUDE_BIN = "", Worker, Plain,
        "a path, or a name on `PATH`, as `claude`",
        "The Claude CLI; `claude` if empty. `make run` and `make start` install one.";
    WORKER_HTTP_HOST = "127.0.0.1", Worker, Plain,
        "an address of this machine, as `0.0.0.0` for all of them",
        "Where its health and metrics are served.";
    WORKER_HTTP_PORT = "", Worker, Plain,
        "a number from 0 to 65535, as `9090`",
        "On which port, if at all.";
    MAX_WORKERS = "5", Worker, Plain,
        "a number from 1 to 1024, as `5`",
        "The most jobs, and so CLI processes, at a time.";
    WORKER_TIMEOUT = "600", Worker, Plain,
        "a length of time, as `600` or `10m`",
        "The longest that one attempt of a job may run.";
    IDLE_TIMEOUT = "300", Worker, Plain,
        "a length of time, as `300` or `5m`",
        "The longest that a CLI process may be silent while no tool of its runs.";
    WORKER_NAME = "", Worker, Plain,
        "a name, as `worker-1`",
        "This worker's name in lists and logs, the same after a restart; the host's name if empty.";
    JOBS_DIR = "", Worker, Plain,
        "a path of at most 75 bytes, as `/var/lib/claude/jobs`",
        "Where the folders of running jobs are; below the system's temporary folder if empty.";
    DEFAULT_TOOLS = "", Worker, Plain,
        "names separated by commas, as `Read,Grep`",
        "The tools a job gets that asks for none.";
    MCP_SERVERS_FILE = "", Worker, Plain,
        "the path of a JSON file: see `docs/operations.md`",
        "The MCP servers that jobs may name; none if empty.";
    UNSANDBOXED_TOOLS = "0", Worker, Plain,
        "`1` or `0`",
        "`1`: tools may run where no sandbox works. They then act as this worker's user.";
}

/// The settings of `reader` as `env` has them, a line each: what is set, and what is not.
pub fn listing(env: &Env, reader: Reader) -> String {
    let mut list = String::new();
    for setting in ALL.iter().filter(|setting| setting.reader.is_of(reader)) {
        let (value, from) = env.text(setting.name).map_or((setting.default, "default"), |value| (value, "set"));
        writeln!(list, "{}={} # {from}", setting.name, quoted(&shown(setting, value))).expect("a string takes all that is written to it");
    }
    list
}

/// As much of a value as may be seen.
fn shown(setting: &Setting, value: &str) -> String {
    match setting.content {
        Content::Plain => value.to_owned(),
        Content::Address => without_password(value),
        Content::Secret if value.is_empty() => String::new(),
        Content::Secret => "***".to_owned(),
    }
}

fn without_password(address: &str) -> String {
    let (address, query) = address.split_once('?').map_or((address, None), |(address, query)| (address, Some(query)));
    let address = match (address.split_once("://"), address.rsplit_once('@')) {
        (_, None) => address.to_owned(),
        (Some((scheme, _)), Some((user, rest))) => {
            let user = user.split_once("://").map_or("", |(_, user)| user);
            let name = user.split(':').next().unwrap_or_default();
            let password = if user.contains(':') { ":***" } else { "" };
            format!("{scheme}://{name}{password}@{rest}")
        }
        // No address: whatever it is.
        (None, Some(_)) => "***".to_owned(),
    };
    match query {
        None => address,
        Some(query) if query.to_ascii_lowercase().contains("pass") => format!("{address}?***"),
        Some(query) => format!("{address}?{query}"),
    }
}

/// As `.env` can have it.
fn quoted(value: &str) -> String {
    if value.contains(char::is_whitespace) || value.contains('#') { format!("\"{value}\"") } else { value.to_owned() }
}

/// A variable of `env` that is hardly meant to be what it is called: no setting, and nearly one.
#[derive(Debug, PartialEq, Eq)]
pub struct Misspelt {
    /// What it is called.
    pub name: String,
    /// What it may be meant to be.
    pub meant: &'static str,
}

/// The variables of `env` that are nearly settings, by their names.
pub fn misspelt(env: &Env) -> Vec<Misspelt> {
    let mut found: Vec<Misspelt> = env.names().filter_map(|name| Some(Misspelt { name: name.to_owned(), meant: nearest(name)? })).collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

/// Say in the log what is nearly a setting.
pub fn warn_of_misspelt(env: &Env) {
    for Misspelt { name, meant } in misspelt(env) {
        tracing::warn!("`{name}` is no setting and counts for nothing (hint: `{meant}`?)");
    }
}

/// The setting that `name` nearly is. Of a short name every letter counts: `POST` is not `PORT`, nor `HOME` `HOST`.
fn nearest(name: &str) -> Option<&'static str> {
    let distances = ALL.iter().map(|setting| (strsim::damerau_levenshtein(name, setting.name), setting.name));
    let (distance, meant) = distances.min()?;
    let is_near = (1..=(name.len().min(meant.len()) / 6).min(2)).contains(&distance);
    is_near.then_some(meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_says_what_is_set_and_tells_no_secret() {
        let env = Env::of([
            ("PORT", "80"),
            ("JWT_SECRET", "hunter2"),
            ("DATABASE_URL", "postgresql://me:hunter2@db/x?sslmode=require"),
            ("REDIS_URL", "redis://:hunter2@cache"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector?PASSWORD=hunter2"),
            ("TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
        ]);

        let list = listing(&env, Reader::Api);

        for line in [
            "PORT=80 # set",
            "HOST=127.0.0.1 # default",
            "JWT_SECRET=*** # set",
            "METRICS_TOKEN= # default",
            "DATABASE_URL=postgresql://me:***@db/x?sslmode=require # set",
            "REDIS_URL=redis://:***@cache # set",
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector?*** # set",
            "TRUSTED_PROXIES=\"10.0.0.0/8, ::1\" # set",
        ] {
            assert!(list.lines().any(|found| found == line), "{line}:\n{list}");
        }
        assert!(!list.contains("hunter2") && !list.contains("MAX_WORKERS"), "{list}");
        assert!(
            listing(&Env::default(), Reader::Worker)
                .contains("DATABASE_URL=postgresql://postgres:***@localhost:5432/claude_api # default\n")
        );
    }

    #[test]
    fn no_password_is_seen_however_odd_the_address() {
        for odd in
            ["postgres://u:hunter2/x@y@db", "hunter2@db", "redis://a:b:hunter2@[::1]:6379", "sqlite:x?Password=hunter2", "x://u:hunter2@"]
        {
            assert!(!without_password(odd).contains("hunter2"), "{odd}");
        }
        for plain in ["sqlite://data/x.db?mode=rwc", "redis+unix:///run/redis.sock", "http://user@host", "nonsense"] {
            assert_eq!(without_password(plain), plain);
        }
    }

    #[test]
    fn a_name_that_is_nearly_a_setting_is_found_and_what_others_use_is_not() {
        let env = Env::of([
            ("DRAIN_TIMOUT", "5"),
            ("DATABASE_URI", "x"),
            ("MAX_WROKERS", "7"),
            ("LOGLEVEL", "warn"),
            ("PORT", "1"),
            ("HOME", "/"),
            ("POST", "1"),
        ]);

        let found: Vec<_> = misspelt(&env).into_iter().map(|misspelt| (misspelt.name, misspelt.meant)).collect();

        let expected = [
            ("DATABASE_URI", "DATABASE_URL"),
            ("DRAIN_TIMOUT", "DRAIN_TIMEOUT"),
            ("LOGLEVEL", "LOG_LEVEL"),
            ("MAX_WROKERS", "MAX_WORKERS"),
        ];
        assert_eq!(found, expected.map(|(name, meant)| (name.to_owned(), meant)));
        for others in [
            "PATH",
            "LANG",
            "TERM",
            "USER",
            "SHELL",
            "PWD",
            "HOSTNAME",
            "HOSTTYPE",
            "REDIS_PORT",
            "REDIS_HOST",
            "API_PORT",
            "WORKER_HOST",
            "LOG_FILE",
            "TMPDIR",
        ] {
            assert_eq!(nearest(others), None, "{others}");
        }
    }
}
