//! The operators' switches of tools, by name: a switch holds for every version of the CLI, so it is no
//! part of what one version announced. And which version each worker has.

use crate::step::{migration, run};

const UP: &str = "
CREATE TABLE tool_switches (
    name TEXT PRIMARY KEY NOT NULL,
    enabled BOOLEAN NOT NULL,
    updated_at BIGINT NOT NULL
);
INSERT INTO tool_switches (name, enabled, updated_at)
    SELECT name, FALSE, max(last_seen_at) FROM cli_tools GROUP BY name HAVING count(CASE WHEN enabled THEN 1 END) = 0;
ALTER TABLE cli_tools DROP COLUMN enabled;
ALTER TABLE workers ADD COLUMN cli_version TEXT;
";

const DOWN: &str = "
ALTER TABLE workers DROP COLUMN cli_version;
ALTER TABLE cli_tools ADD COLUMN enabled BOOLEAN NOT NULL DEFAULT TRUE;
UPDATE cli_tools SET enabled = FALSE WHERE name IN (SELECT name FROM tool_switches WHERE NOT enabled);
DROP TABLE tool_switches;
";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) { run(manager, DOWN).await }
}
