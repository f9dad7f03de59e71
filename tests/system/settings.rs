//! Settings as operators meet them: one table in the code, the same in the documentation and in `.env.example`; all
//! that is wrong told at once; and what is set shown without what is secret.

use std::{
    fs, iter,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use shared::{
    config::Env,
    settings::{self, Reader, Setting},
};
use tests::{
    servers::Kind,
    system::{Cli, JWT_SECRET, System, run_alone},
};

/// Where the tables are.
const DOCUMENT: &str = "docs/operations.md";

#[tokio::test]
async fn all_that_is_wrong_is_told_at_once_before_anything_begins() -> anyhow::Result<()> {
    let wrong = [("PORT", "66000"), ("DATABASE_URL", "mysql://me:hunter2@db"), ("DRAIN_TIMEOUT", "soon"), ("JWT_SECRET", "hunter2")];

    for (program, words) in [("api", &[][..]), ("api", &["config"]), ("worker", &[]), ("worker", &["config"])] {
        let ended = run_alone(program, words, &wrong).await?;

        assert!(!ended.is_success, "{program} {words:?}");
        let told: Vec<&str> = ended.log.lines().filter_map(|line| line.strip_prefix("  `")?.split('`').next()).collect();
        let expected: &[&str] = match program {
            "api" => &["DATABASE_URL", "DRAIN_TIMEOUT", "PORT", "JWT_SECRET"],
            _ => &["DATABASE_URL", "DRAIN_TIMEOUT", "ANTHROPIC_API_KEY"],
        };
        assert_eq!(told, expected, "{program} {words:?}: {}", ended.log);
        assert!(ended.log.starts_with(&format!("Error: {} settings cannot be used:\n", expected.len())), "{}", ended.log);
        assert!(ended.log.lines().skip(1).all(|line| line.contains("(hint: ")), "{}", ended.log);
        assert!(!ended.log.contains("hunter2") && !ended.printed.contains("hunter2"), "{}{}", ended.log, ended.printed);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_set_is_printed_in_the_order_of_the_documentation_and_no_secret_is() -> anyhow::Result<()> {
    let set =
        [("JWT_SECRET", JWT_SECRET), ("PORT", "8080"), ("DATABASE_URL", "postgresql://me:hunter2@db/x"), ("ANTHROPIC_API_KEY", "hunter2")];

    for (program, reader, line) in [("api", Reader::Api, "PORT=8080 # set"), ("worker", Reader::Worker, "ANTHROPIC_API_KEY=*** # set")] {
        let ended = run_alone(program, &["config"], &set).await?;

        assert!(ended.is_success && ended.log.is_empty(), "{}", ended.log);
        let names: Vec<&str> = ended.printed.lines().filter_map(|line| line.split('=').next()).collect();
        assert_eq!(names, of(reader).map(|setting| setting.name).collect::<Vec<_>>());
        for line in [line, "DATABASE_URL=postgresql://me:***@db/x # set", "LOG_LEVEL=info # default"] {
            assert!(ended.printed.lines().any(|found| found == line), "{line}:\n{}", ended.printed);
        }
        assert!(!ended.printed.contains("hunter2") && !ended.printed.contains(JWT_SECRET), "{}", ended.printed);
    }
    Ok(())
}

#[tokio::test]
async fn a_misspelt_setting_is_warned_of_at_the_start() -> anyhow::Result<()> {
    let system = System::start(Kind::Sqlite, Cli::Fake).await?.with("DRAIN_TIMOUT", "5");
    let (mut api, mut worker) = (system.api().await?, system.worker().await?);

    for process in [&mut api.process, &mut worker] {
        process.said("`DRAIN_TIMOUT` is no setting and counts for nothing (hint: `DRAIN_TIMEOUT`?)").await?;
    }
    Ok(())
}

#[test]
fn the_documentation_has_every_setting_with_its_default_and_no_other() -> anyhow::Result<()> {
    let path = repository().join(DOCUMENT);
    let document = fs::read_to_string(&path)?;

    let expected = with_tables(&document)?;

    if Env::of_process().text("UPDATE_SETTINGS").is_some() {
        fs::write(path, expected)?;
        return Ok(());
    }
    assert!(document == expected, "`{DOCUMENT}` has other settings than the code (hint: `UPDATE_SETTINGS=1` writes them)");
    Ok(())
}

#[test]
fn the_example_has_every_setting_with_its_default_and_sets_none_of_them() -> anyhow::Result<()> {
    let example = fs::read_to_string(repository().join(".env.example"))?;

    // A remark has a blank after its `#`, a setting has none.
    let lines = example.lines().map(|line| line.strip_prefix('#').unwrap_or(line));
    let shown = lines.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let shown: Vec<(&str, &str)> = shown.filter_map(|line| line.split_once('=')).collect();

    // The first is for `compose.yaml` alone.
    let expected = iter::once(("POSTGRES_PASSWORD", "")).chain(settings::ALL.iter().map(|setting| (setting.name, setting.default)));
    assert_eq!(shown, expected.collect::<Vec<_>>());
    // What is copied as it is overrides nothing, as what a container says by itself.
    let set: Vec<&str> =
        example.lines().filter(|line| !line.starts_with('#') && line.split_once('=').is_some_and(|(_, value)| !value.is_empty())).collect();
    assert_eq!(set, Vec::<&str>::new());
    Ok(())
}

/// What is read by name and not by the table: the file, and the variable.
const OTHERS: [(&str, &str); 6] = [
    ("shared/src/config.rs", "setting.name"),
    // What is set is listed.
    ("shared/src/settings.rs", "setting.name"),
    ("worker/src/config.rs", "PATH"),
    // Of builds for tests, and of tests.
    ("shared/src/failpoint.rs", "FAILPOINTS"),
    ("shared/src/redis/server.rs", "REDIS_SERVER"),
    ("worker/src/claude/stream/golden.rs", "UPDATE_GOLDEN"),
];

#[test]
fn nothing_is_read_past_the_table() -> anyhow::Result<()> {
    let mut read = Vec::new();
    for path in ["api/src", "worker/src", "shared/src"].map(|folder| sources(&repository().join(folder))).into_iter().flatten().flatten() {
        let source = fs::read_to_string(&path)?;
        let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let file = path.strip_prefix(repository())?.to_string_lossy().into_owned();
        for call in ["env.text(", "of_process().text(", "env::var(", "env::var_os("] {
            let names = code.split(call).skip(1).filter_map(|rest| rest.split(')').next());
            read.extend(names.map(|name| (file.clone(), name.trim_matches('"').to_owned())));
        }
        assert!(file == "shared/src/config.rs" || !code.contains("env::vars"), "`{file}` reads all variables");
    }

    read.sort();
    let mut expected = OTHERS.map(|(file, name)| (file.to_owned(), name.to_owned()));
    expected.sort();
    assert_eq!(read, expected);
    Ok(())
}

#[test]
fn the_schema_by_hand_is_that_of_the_same_database() -> anyhow::Result<()> {
    let source = fs::read_to_string(repository().join("migration/src/main.rs"))?;

    assert!(source.contains("env = \"DATABASE_URL\"") && source.matches("env = \"").count() == 1);
    assert!(source.contains(&format!("const DATABASE_URL: &str = \"{}\";", settings::DATABASE_URL.default)));
    assert!(source.contains("default_value = DATABASE_URL"));
    Ok(())
}

/// What the seed of this project had, which nobody may lose.
#[test]
fn the_settings_that_were_first_are_still_there() {
    for (name, default) in [
        ("DATABASE_URL", None),
        ("REDIS_URL", None),
        ("PORT", Some("3001")),
        ("JWT_SECRET", None),
        ("FRONTEND_URL", Some("http://localhost:3030")),
        ("MAX_WORKERS", Some("5")),
        ("DEFAULT_RATE_LIMIT_PER_HOUR", Some("1000")),
        ("WORKER_TIMEOUT", None),
        ("LOG_LEVEL", None),
        ("ADMIN_EMAIL", None),
        ("ADMIN_PASSWORD", None),
    ] {
        let found = settings::ALL.iter().find(|setting| setting.name == name).unwrap_or_else(|| panic!("no `{name}`"));
        assert!(default.is_none_or(|default| found.default == default), "{found:?}");
    }
}

fn of(reader: Reader) -> impl Iterator<Item = &'static Setting> {
    settings::ALL.iter().copied().filter(move |setting| setting.reader.is_of(reader))
}

/// `document` with the tables that it should have.
fn with_tables(document: &str) -> anyhow::Result<String> {
    let mut whole = document.to_owned();
    for (mark, reader) in [("both", Reader::Both), ("api", Reader::Api), ("worker", Reader::Worker)] {
        let begin = format!("<!-- settings: {mark} -->\n");
        let (before, rest) = whole.split_once(&begin).with_context(|| format!("no `{mark}`"))?;
        let after = rest.trim_start_matches(|c: char| c.is_whitespace()).lines().skip_while(|line| line.starts_with('|'));
        let after = after.collect::<Vec<_>>().join("\n");
        let rows: String = settings::ALL.iter().filter(|setting| setting.reader == reader).map(|setting| row(setting)).collect();
        whole = format!(
            "{before}{begin}\n| variable | default | what it is for | what it may be |\n|---|---|---|---|\n{rows}\n{}\n",
            after.trim_start()
        );
    }
    Ok(whole)
}

fn row(setting: &Setting) -> String {
    let default = if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
    format!("| `{}` | {default} | {} | {} |\n", setting.name, setting.meaning, setting.form)
}

fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is in a folder").to_owned()
}
