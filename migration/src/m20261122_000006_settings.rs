//! What operators set at run time: which tools there are and whether they are on, and a few switches.

use crate::step::{migration, run};

const UP: &str = "
CREATE TABLE cli_tools (
    cli_version TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT,
    category TEXT,
    enabled BOOLEAN NOT NULL DEFAULT TRUE,
    first_seen_at BIGINT NOT NULL,
    last_seen_at BIGINT NOT NULL,
    PRIMARY KEY (cli_version, name)
);

CREATE TABLE settings (
    key TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
";

const DOWN: &str = "
DROP TABLE settings;
DROP TABLE cli_tools;
";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
