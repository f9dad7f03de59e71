//! The hourly windows, common to all replicas. One script decides and counts, by the clock of Redis.

use std::sync::LazyLock;

use fred::{
    prelude::{Client, Error as RedisError, ErrorKind},
    types::scripts::Script,
};

use super::{keys, unavailable};
use crate::{
    Result,
    id::{ApiKeyId, UserId},
    window::{Operation, Outcome, Standing},
};

static LIMIT: LazyLock<Script> = LazyLock::new(|| Script::from_lua(include_str!("scripts/limit.lua")));

/// What the script takes for "your own clock".
const CLOCK_OF_REDIS: &str = "";

/// Do `operation` on the window of a user and perhaps that of a key of theirs, each with its limit.
pub async fn run(client: &Client, operation: Operation, user: (UserId, u32), key: Option<(ApiKeyId, u32)>) -> Result<Outcome> {
    run_by(CLOCK_OF_REDIS, client, operation, user, key).await
}

async fn run_by(
    clock: &str,
    client: &Client,
    operation: Operation,
    (user, per_user): (UserId, u32),
    key: Option<(ApiKeyId, u32)>,
) -> Result<Outcome> {
    let (name, minute) = match operation {
        Operation::Charge => ("charge", String::new()),
        Operation::Refund(minute) => ("refund", minute.to_string()),
        Operation::Peek => ("peek", String::new()),
    };
    let mut windows = vec![keys::user_window(user)];
    let mut arguments = vec![name.to_owned(), minute, clock.to_owned(), per_user.to_string()];
    if let Some((key, per_key)) = key {
        windows.push(keys::key_window(user, key));
        arguments.push(per_key.to_string());
    }
    let answer: Vec<i64> = LIMIT.evalsha_with_reload(client, windows, arguments).await.map_err(unavailable)?;
    outcome(&answer).ok_or_else(|| unavailable(RedisError::new(ErrorKind::Parse, "not what the script answers")))
}

fn outcome(answer: &[i64]) -> Option<Outcome> {
    let [granted, minute, windows @ ..] = answer else { return None };
    let (windows, []) = windows.as_chunks() else { return None };
    let (user, key) = windows.split_first()?;
    let key = key.first().map_or(Some(None), |key| standing(*key).map(Some))?;
    Some(Outcome { granted: *granted == 1, minute: *minute, user: standing(*user)?, key })
}

fn standing([remaining, reset_ms, wait_ms]: [i64; 3]) -> Option<Standing> {
    let (reset_ms, wait_ms) = (reset_ms.try_into().ok()?, wait_ms.try_into().ok()?);
    Some(Standing { remaining: remaining.try_into().ok()?, reset_ms, wait_ms })
}

#[cfg(test)]
mod tests {
    use fred::interfaces::{ClientLike as _, KeysInterface as _};
    use proptest::test_runner::{Config, TestRunner};
    use tokio::runtime::Runtime;

    use super::{super::server::Server, *};
    use crate::window::{
        Window,
        tests::{Book, Deed, story},
    };

    const HOUR: i64 = 3_600_000;

    #[test]
    fn no_hour_sees_more_than_the_limit_and_the_script_agrees_with_the_window() {
        let server = Server::start();
        let runtime = Runtime::new().unwrap();
        // Replicas: two connections that take turns.
        let clients = runtime.block_on(async { [server.connect().await, server.connect().await] });
        let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });

        let cases = (story(), 1..12u32, 1..12u32);
        let verdict = runner.run(&cases, |(story, per_user, per_key)| {
            runtime.block_on(async {
                let (user, key) = (UserId::new(), ApiKeyId::new());
                let (mut user_window, mut key_window) = (Window::default(), Window::default());
                let (mut book, mut now) = (Book::default(), 400_000 * HOUR);
                for (n, step) in story.into_iter().enumerate() {
                    now += step.after_ms;
                    let (operation, with_key) = match step.deed {
                        Deed::Charge => (Operation::Charge, step.with_key),
                        Deed::Peek => (Operation::Peek, step.with_key),
                        Deed::Refund(back) if back < book.charges.len() => {
                            let (_, minute, with_key) = book.charges.remove(book.charges.len() - 1 - back);
                            (Operation::Refund(minute), with_key)
                        }
                        Deed::Refund(_) => continue,
                    };
                    let by_key = with_key.then_some((key, per_key));
                    let outcome = run_by(&now.to_string(), &clients[n % 2], operation, (user, per_user), by_key).await.unwrap();
                    let key_window = with_key.then_some((&mut key_window, per_key));
                    let expected = Window::run(operation, (&mut user_window, per_user), key_window, now);
                    assert_eq!(outcome, expected);
                    if operation == Operation::Charge && outcome.granted {
                        book.charges.push((now, outcome.minute, with_key));
                    }
                }
                assert!(book.most_in_an_hour(false) <= per_user as usize);
                assert!(book.most_in_an_hour(true) <= per_key as usize);
                now += 61 * 60_000;
                for n in 0..=per_user {
                    let outcome = run_by(&now.to_string(), &clients[0], Operation::Charge, (user, per_user), None).await.unwrap();
                    assert_eq!(outcome.granted, n < per_user);
                }
            });
            Ok(())
        });

        verdict.unwrap();
    }

    #[test]
    fn a_clock_that_was_set_back_grants_nothing_twice_and_locks_nobody_out() {
        let server = Server::start();
        Runtime::new().unwrap().block_on(async {
            let (client, user) = (server.connect().await, UserId::new());
            let charge = async |at: i64| run_by(&at.to_string(), &client, Operation::Charge, (user, 1), None).await.unwrap();
            let start = 400_000 * HOUR;

            assert!(charge(start).await.granted);

            assert!(!charge(start - 59 * 60_000).await.granted);
            assert!(charge(start - 2 * HOUR).await.granted);
            assert!(!charge(start - 2 * HOUR).await.granted);
        });
    }

    #[test]
    fn a_window_is_gone_when_nothing_in_it_counts() {
        let server = Server::start();
        Runtime::new().unwrap().block_on(async {
            let (client, user, key) = (server.connect().await, UserId::new(), ApiKeyId::new());

            let charged = run(&client, Operation::Charge, (user, 5), Some((key, 5))).await.unwrap();

            for name in [keys::user_window(user), keys::key_window(user, key)] {
                let left: i64 = client.pttl(&name).await.unwrap();
                assert!((1..=61 * 60_000).contains(&left), "{name}: {left}");
                assert!(left.abs_diff(i64::try_from(charged.user.reset_ms).unwrap()) < 5_000, "{name}: {left}");
            }
            run(&client, Operation::Refund(charged.minute), (user, 5), Some((key, 5))).await.unwrap();
            let left: i64 = client.exists(vec![keys::user_window(user), keys::key_window(user, key)]).await.unwrap();
            assert_eq!(left, 0);
            client.quit().await.unwrap();
        });
    }
}
