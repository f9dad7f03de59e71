//! Budgets and caps, kept where no statement can forget them: triggers on `jobs` keep each user's day in
//! `spend`, and refuse a job that its owner's budget or one of the caps does not admit. All of a job
//! belongs to the UTC day it was accepted on.

use crate::step::{migration, run, run_either};

/// What a job still holds of its owner's budget.
const OUTSTANDING: &str = "
CASE WHEN {job}.state IN ('completed', 'failed', 'cancelled') OR {job}.reserved_nano_usd <= {job}.cost_nano_usd THEN 0
     ELSE {job}.reserved_nano_usd - {job}.cost_nano_usd END";

const INDEX: &str = "
CREATE INDEX usage_logs_rate ON usage_logs (model, created_at) WHERE NOT estimated AND cost_nano_usd > 0;
";

// The lock on the day's row puts the admissions of one user in an order; what follows it in the function
// sees all that was committed before. Jobs that nothing limits take no lock.
const POSTGRES_TRIGGERS: &str = "
CREATE FUNCTION spend_add(of_user UUID, at BIGINT, reserved BIGINT, spent BIGINT) RETURNS BIGINT LANGUAGE sql AS $$
    INSERT INTO spend AS known (user_id, utc_day, reserved_nano_usd, spent_nano_usd) VALUES (of_user, at / 86400000, reserved, spent)
    ON CONFLICT (user_id, utc_day) DO UPDATE SET reserved_nano_usd = known.reserved_nano_usd + excluded.reserved_nano_usd,
                                                 spent_nano_usd = known.spent_nano_usd + excluded.spent_nano_usd
    RETURNING known.reserved_nano_usd + known.spent_nano_usd
$$;

CREATE FUNCTION jobs_admit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    budget BIGINT;
    user_cap INTEGER;
    key_cap INTEGER;
    committed BIGINT;
BEGIN
    SELECT daily_budget_nano_usd, max_concurrent_jobs INTO budget, user_cap FROM users WHERE id = NEW.user_id;
    SELECT max_concurrent_jobs INTO key_cap FROM api_keys WHERE id = NEW.api_key_id;
    IF NEW.reserved_nano_usd = 0 AND budget IS NULL AND user_cap IS NULL AND key_cap IS NULL THEN
        RETURN NULL;
    END IF;
    committed := spend_add(NEW.user_id, NEW.created_at, NEW.reserved_nano_usd, 0);
    IF committed > budget OR (NEW.reserved_nano_usd = 0 AND committed >= budget) THEN
        RAISE EXCEPTION 'budget_exhausted';
    END IF;
    IF user_cap IS NOT NULL AND user_cap < (
        SELECT count(*) FROM jobs WHERE user_id = NEW.user_id AND state IN ('queued', 'running')
    ) THEN
        RAISE EXCEPTION 'too_many_jobs';
    END IF;
    IF key_cap IS NOT NULL AND key_cap < (
        SELECT count(*) FROM jobs WHERE user_id = NEW.user_id AND state IN ('queued', 'running') AND api_key_id = NEW.api_key_id
    ) THEN
        RAISE EXCEPTION 'too_many_jobs';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_admit AFTER INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION jobs_admit();

CREATE FUNCTION jobs_account() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM spend_add(NEW.user_id, NEW.created_at, {new} - {old}, NEW.cost_nano_usd - OLD.cost_nano_usd);
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_account AFTER UPDATE OF state, cost_nano_usd, reserved_nano_usd ON jobs FOR EACH ROW
    WHEN ({new} <> {old} OR NEW.cost_nano_usd <> OLD.cost_nano_usd) EXECUTE FUNCTION jobs_account();

CREATE FUNCTION jobs_release() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE spend SET reserved_nano_usd = reserved_nano_usd - {old} WHERE user_id = OLD.user_id AND utc_day = OLD.created_at / 86400000;
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_release AFTER DELETE ON jobs FOR EACH ROW WHEN ({old} > 0) EXECUTE FUNCTION jobs_release();

-- One row takes all the changes of its user's day: room in the page keeps the versions together.
ALTER TABLE spend SET (fillfactor = 50);
";

// One writer at a time gives the order that the row's lock gives.
const SQLITE_TRIGGERS: &str = "
CREATE TRIGGER jobs_admit AFTER INSERT ON jobs FOR EACH ROW
BEGIN
    INSERT INTO spend (user_id, utc_day, reserved_nano_usd, spent_nano_usd)
    SELECT NEW.user_id, NEW.created_at / 86400000, NEW.reserved_nano_usd, 0 WHERE NEW.reserved_nano_usd <> 0
    ON CONFLICT (user_id, utc_day) DO UPDATE SET reserved_nano_usd = reserved_nano_usd + excluded.reserved_nano_usd;

    SELECT RAISE(ABORT, 'budget_exhausted') FROM users
    LEFT JOIN spend ON spend.user_id = users.id AND spend.utc_day = NEW.created_at / 86400000
    WHERE users.id = NEW.user_id
      AND COALESCE(reserved_nano_usd + spent_nano_usd, 0) + (NEW.reserved_nano_usd = 0) > users.daily_budget_nano_usd;

    SELECT RAISE(ABORT, 'too_many_jobs') FROM users WHERE id = NEW.user_id AND max_concurrent_jobs <
        (SELECT count(*) FROM jobs WHERE user_id = NEW.user_id AND state IN ('queued', 'running'));

    SELECT RAISE(ABORT, 'too_many_jobs') FROM api_keys WHERE id = NEW.api_key_id AND max_concurrent_jobs <
        (SELECT count(*) FROM jobs WHERE user_id = NEW.user_id AND state IN ('queued', 'running') AND api_key_id = NEW.api_key_id);
END;

CREATE TRIGGER jobs_account AFTER UPDATE OF state, cost_nano_usd, reserved_nano_usd ON jobs FOR EACH ROW
    WHEN {new} <> {old} OR NEW.cost_nano_usd <> OLD.cost_nano_usd
BEGIN
    INSERT INTO spend (user_id, utc_day, reserved_nano_usd, spent_nano_usd)
    VALUES (NEW.user_id, NEW.created_at / 86400000, {new} - {old}, NEW.cost_nano_usd - OLD.cost_nano_usd)
    ON CONFLICT (user_id, utc_day) DO UPDATE SET reserved_nano_usd = reserved_nano_usd + excluded.reserved_nano_usd,
                                                 spent_nano_usd = spent_nano_usd + excluded.spent_nano_usd;
END;

CREATE TRIGGER jobs_release AFTER DELETE ON jobs FOR EACH ROW WHEN {old} > 0
BEGIN
    UPDATE spend SET reserved_nano_usd = reserved_nano_usd - {old} WHERE user_id = OLD.user_id AND utc_day = OLD.created_at / 86400000;
END;
";

// After the triggers: what is written from then on is counted, what was written before is counted here.
const COUNT: &str = "
INSERT INTO spend (user_id, utc_day, reserved_nano_usd, spent_nano_usd)
SELECT user_id, created_at / 86400000, SUM({each}), SUM(cost_nano_usd) FROM jobs WHERE TRUE GROUP BY user_id, created_at / 86400000
ON CONFLICT (user_id, utc_day) DO UPDATE SET reserved_nano_usd = excluded.reserved_nano_usd, spent_nano_usd = excluded.spent_nano_usd;
";

const POSTGRES_DOWN: &str = "
ALTER TABLE spend RESET (fillfactor);
DROP TRIGGER jobs_release ON jobs;
DROP TRIGGER jobs_account ON jobs;
DROP TRIGGER jobs_admit ON jobs;
DROP FUNCTION jobs_release;
DROP FUNCTION jobs_account;
DROP FUNCTION jobs_admit;
DROP FUNCTION spend_add;
";

const SQLITE_DOWN: &str = "
DROP TRIGGER jobs_release;
DROP TRIGGER jobs_account;
DROP TRIGGER jobs_admit;
";

const DOWN: &str = "
DROP INDEX usage_logs_rate;
DELETE FROM spend;
";

/// `sql` with what the job of each row holds written out.
fn with_outstanding(sql: &str) -> String {
    let of = |job: &str| format!("({})", OUTSTANDING.trim().replace("{job}", job));
    sql.replace("{new}", &of("NEW")).replace("{old}", &of("OLD")).replace("{each}", &of("jobs"))
}

migration! {
    up(manager) {
        run(manager, INDEX).await?;
        run_either(manager, &with_outstanding(POSTGRES_TRIGGERS), &with_outstanding(SQLITE_TRIGGERS)).await?;
        run(manager, &with_outstanding(COUNT)).await
    }
    down(manager) {
        run_either(manager, POSTGRES_DOWN, SQLITE_DOWN).await?;
        run(manager, DOWN).await
    }
}
