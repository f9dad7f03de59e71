//! The worker processes that hold leases, and the one process that looks after them all.

use crate::step::{migration, run, run_either};

const UP: &str = "
CREATE TABLE workers (
    id UUID PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    host TEXT NOT NULL,
    version TEXT NOT NULL,
    slots INTEGER NOT NULL,
    beat BIGINT NOT NULL DEFAULT 0,
    dead BOOLEAN NOT NULL DEFAULT FALSE,
    draining BOOLEAN NOT NULL DEFAULT FALSE,
    started_at BIGINT NOT NULL,
    last_beat_at BIGINT NOT NULL
);
CREATE INDEX workers_alive ON workers (id) WHERE NOT dead;
CREATE INDEX workers_by_last_beat ON workers (last_beat_at);

CREATE TABLE leader (
    id INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
    holder UUID,
    term BIGINT NOT NULL,
    beat BIGINT NOT NULL
);
INSERT INTO leader (id, holder, term, beat) VALUES (1, NULL, 0, 0);
";

// Rewritten each second: room in the page keeps the new version beside the old one, off the indexes.
const POSTGRES: &str = "
ALTER TABLE workers SET (fillfactor = 50);
ALTER TABLE leader SET (fillfactor = 10);
";

const DOWN: &str = "
DROP TABLE leader;
DROP TABLE workers;
";

migration! {
    up(manager) {
        run(manager, UP).await?;
        run_either(manager, POSTGRES, "").await
    }
    down(manager) { run(manager, DOWN).await }
}
