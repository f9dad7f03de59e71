//! Accounts that can be deleted, a lock for the decision who is an admin, and the end of the bootstrap
//! key's user: it stays, disabled, where something belongs to it.

use crate::step::{migration, run, run_either};

const UP: &str = "
ALTER TABLE users ADD COLUMN deleted_at BIGINT;
CREATE INDEX users_to_forget ON users (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX audit_log_of_action ON audit_log (action, id);
INSERT INTO settings (key, value, updated_at) VALUES ('admins', 'held while it is decided who is an admin', 0);
DELETE FROM users WHERE email_folded = 'user_bootstrap'
    AND NOT EXISTS (SELECT 1 FROM jobs WHERE user_id = users.id) AND NOT EXISTS (SELECT 1 FROM sessions WHERE user_id = users.id);
UPDATE users SET disabled = TRUE WHERE email_folded = 'user_bootstrap';
";

const DOWN: &str = "
DELETE FROM settings WHERE key = 'admins';
DROP INDEX audit_log_of_action;
DROP INDEX users_to_forget;
ALTER TABLE users DROP COLUMN deleted_at;
UPDATE users SET disabled = FALSE WHERE email_folded = 'user_bootstrap';
";

const POSTGRES_DOWN: &str = "
INSERT INTO users (id, email, email_folded, name, created_at, updated_at)
VALUES ('00000000-0000-0000-0000-000000000001', 'user_bootstrap', 'user_bootstrap', 'Bootstrap key', 0, 0)
ON CONFLICT DO NOTHING;
";

const SQLITE_DOWN: &str = "
INSERT INTO users (id, email, email_folded, name, created_at, updated_at)
VALUES (X'00000000000000000000000000000001', 'user_bootstrap', 'user_bootstrap', 'Bootstrap key', 0, 0)
ON CONFLICT DO NOTHING;
";

migration! {
    up(manager) { run(manager, UP).await }
    down(manager) {
        run(manager, DOWN).await?;
        run_either(manager, POSTGRES_DOWN, SQLITE_DOWN).await
    }
}
