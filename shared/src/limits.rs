//! How many requests a user, and a key of theirs, may make in any 60 minutes: common to all replicas by
//! Redis, and by each replica for its part while Redis is away. Never fails and never waits long. A Redis
//! that lost its memory begins anew.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fred::{interfaces::ClientLike as _, prelude::Client};
use moka::future::Cache;

use crate::{
    id::{ApiKeyId, UserId},
    redis::limits as common,
    store::Store,
    window::{Operation, Outcome, Standing, Window},
};

/// The longest wait for Redis.
const PATIENCE: Duration = Duration::from_millis(150);
/// How long Redis is left alone after it did not answer: one request in that time tries it.
const PAUSE: Duration = Duration::from_secs(1);
/// Users and keys whose windows are kept in memory while Redis is away.
const SUBJECTS: u64 = 100_000;
/// How long a window in memory is kept after its last use: all of it has left it by then.
const IDLE: Duration = Duration::from_mins(61);

/// What a limit still allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests in any 60 minutes.
    pub limit: u32,
    /// Those that are left.
    pub remaining: u32,
    /// Until the oldest that counts does so no more; 0 when none does.
    pub reset_secs: u32,
}

/// Whether a request may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may, and was counted.
    Granted {
        /// What the user's limit allows after it.
        user: Allowance,
        /// What the key's own limit allows after it.
        key: Option<Allowance>,
        /// Whether this process decided alone, for its part of the limits.
        is_fallback: bool,
        /// For [`Limits::refund`].
        receipt: Receipt,
    },
    /// It may not, and cost nothing.
    Refused {
        /// What the user's limit allows.
        user: Allowance,
        /// What the key's own limit allows.
        key: Option<Allowance>,
        /// When one more is allowed.
        retry_after_secs: u32,
        /// Whether this process decided alone, for its part of the limits.
        is_fallback: bool,
    },
}

/// Where a request was counted, so that it can be taken back there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    minute: i64,
    is_fallback: bool,
}

/// How often this process decided what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitCounts {
    /// Requests that were let in.
    pub granted: u64,
    /// Requests that were not.
    pub refused: u64,
    /// Decisions of either kind that this process made alone.
    pub fallbacks: u64,
}

/// The hourly windows of all users and keys. Cheap to clone.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    redis: Client,
    patience: Duration,
    breaker: Breaker,
    own: OwnWindows,
    granted: AtomicU64,
    refused: AtomicU64,
    fallbacks: AtomicU64,
}

impl Limits {
    /// The windows in `store`, shared by so many replicas.
    pub fn new(store: &Store, replicas: u32) -> Self {
        Self::over(store.redis().clone(), PATIENCE, replicas)
    }

    fn over(redis: Client, patience: Duration, replicas: u32) -> Self {
        Self(Arc::new(Inner {
            redis,
            patience,
            breaker: Breaker::default(),
            own: OwnWindows::new(replicas),
            granted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
        }))
    }

    /// Count a request of `user`, and of a key that has a limit of its own: of both or of neither.
    pub async fn charge(&self, user: UserId, per_user: u32, key: Option<(ApiKeyId, u32)>) -> Verdict {
        let quota = Quota { user, per_user, key };
        let (outcome, is_fallback) = self.run(Operation::Charge, quota).await;
        let (user, key) = self.allowances(quota, outcome, is_fallback);
        let count = if outcome.granted { &self.0.granted } else { &self.0.refused };
        count.fetch_add(1, Ordering::Relaxed);
        self.0.fallbacks.fetch_add(u64::from(is_fallback), Ordering::Relaxed);
        if outcome.granted {
            let receipt = Receipt { minute: outcome.minute, is_fallback };
            return Verdict::Granted { user, key, is_fallback, receipt };
        }
        let waits = outcome.key.map_or(0, |key| key.wait_ms).max(outcome.user.wait_ms);
        Verdict::Refused { user, key, retry_after_secs: whole_secs(waits), is_fallback }
    }

    /// Take back what was counted for a request that turned out to cost nothing; what is allowed then.
    /// `None` when it was left as it is, because Redis came or went in between.
    pub async fn refund(
        &self,
        user: UserId,
        per_user: u32,
        key: Option<(ApiKeyId, u32)>,
        receipt: Receipt,
    ) -> Option<(Allowance, Option<Allowance>)> {
        let (quota, operation) = (Quota { user, per_user, key }, Operation::Refund(receipt.minute));
        let outcome = if receipt.is_fallback { self.0.own.run(operation, quota).await } else { self.ask_redis(operation, quota).await? };
        Some(self.allowances(quota, outcome, receipt.is_fallback))
    }

    /// What is allowed now.
    pub async fn peek(&self, user: UserId, per_user: u32, key: Option<(ApiKeyId, u32)>) -> (Allowance, Option<Allowance>) {
        let quota = Quota { user, per_user, key };
        let (outcome, is_fallback) = self.run(Operation::Peek, quota).await;
        self.allowances(quota, outcome, is_fallback)
    }

    /// How often this process decided what.
    pub fn counts(&self) -> LimitCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        LimitCounts { granted: read(&self.0.granted), refused: read(&self.0.refused), fallbacks: self.fallbacks() }
    }

    /// How many decisions this process made alone.
    pub fn fallbacks(&self) -> u64 {
        self.0.fallbacks.load(Ordering::Relaxed)
    }

    async fn run(&self, operation: Operation, quota: Quota) -> (Outcome, bool) {
        match self.ask_redis(operation, quota).await {
            Some(outcome) => (outcome, false),
            None => (self.0.own.run(operation, quota).await, true),
        }
    }

    async fn ask_redis(&self, operation: Operation, quota: Quota) -> Option<Outcome> {
        let Inner { redis, patience, breaker, .. } = &*self.0;
        if !breaker.may_try() {
            return None;
        }
        let asked = async {
            if !redis.is_connected() {
                return Err("it is not connected".to_owned());
            }
            let answer = common::run(redis, operation, (quota.user, quota.per_user), quota.key);
            match tokio::time::timeout(*patience, answer).await {
                Ok(answer) => answer.map_err(|error| std::error::Error::source(&error).unwrap_or(&error).to_string()),
                Err(_) => Err(format!("no answer within {patience:?}")),
            }
        };
        match asked.await {
            Ok(outcome) => {
                if breaker.succeeded() {
                    tracing::info!("Redis counts requests again");
                }
                Some(outcome)
            }
            Err(cause) => {
                if breaker.failed() {
                    tracing::warn!(cause, "Redis does not count requests: this process limits them alone until it does");
                }
                None
            }
        }
    }

    fn allowances(&self, quota: Quota, outcome: Outcome, is_fallback: bool) -> (Allowance, Option<Allowance>) {
        let quota = if is_fallback { self.0.own.share(quota) } else { quota };
        let key = quota.key.zip(outcome.key).map(|((_, per_key), standing)| allowance(per_key, standing));
        (allowance(quota.per_user, outcome.user), key)
    }
}

fn allowance(limit: u32, standing: Standing) -> Allowance {
    Allowance { limit, remaining: standing.remaining, reset_secs: whole_secs(standing.reset_ms) }
}

/// A part of a second counts as a whole one: who waits so long is not too early.
fn whole_secs(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(1_000)).unwrap_or(u32::MAX)
}

/// Whose request it is, and what limits it.
#[derive(Clone, Copy)]
struct Quota {
    user: UserId,
    per_user: u32,
    key: Option<(ApiKeyId, u32)>,
}

/// The windows of this process alone, for its part of each limit.
struct OwnWindows {
    windows: Cache<Subject, Arc<Mutex<Window>>>,
    replicas: u32,
    began: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    User(UserId),
    Key(ApiKeyId),
}

impl OwnWindows {
    fn new(replicas: u32) -> Self {
        let windows = Cache::builder().max_capacity(SUBJECTS).time_to_idle(IDLE).build();
        Self { windows, replicas: replicas.max(1), began: Instant::now() }
    }

    /// This replica's part of a quota: together they grant no more than all of it, unless there are more of
    /// them than requests to grant.
    fn share(&self, quota: Quota) -> Quota {
        let part = |limit: u32| (limit / self.replicas).max(limit.min(1));
        Quota { per_user: part(quota.per_user), key: quota.key.map(|(key, per_key)| (key, part(per_key))), ..quota }
    }

    async fn run(&self, operation: Operation, quota: Quota) -> Outcome {
        let quota = self.share(quota);
        let user = self.window(Subject::User(quota.user)).await;
        let key = match quota.key {
            Some((key, per_key)) => Some((self.window(Subject::Key(key)).await, per_key)),
            None => None,
        };
        // A user first, then a key of theirs: nobody locks them the other way round.
        let mut user = user.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = key.as_ref().map(|(window, per_key)| (window.lock().unwrap_or_else(PoisonError::into_inner), *per_key));
        let now_ms = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        Window::run(operation, (&mut user, quota.per_user), key.as_mut().map(|(window, per_key)| (&mut **window, *per_key)), now_ms)
    }

    async fn window(&self, subject: Subject) -> Arc<Mutex<Window>> {
        self.windows.get_with(subject, async { Arc::default() }).await
    }
}

/// Whether Redis is worth a try.
struct Breaker {
    began: Instant,
    /// When, in milliseconds from the beginning, the next try is due; 0 while Redis answers.
    retry_at: AtomicU64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { began: Instant::now(), retry_at: AtomicU64::new(0) }
    }
}

impl Breaker {
    /// Always while Redis answers; once in each pause while it does not.
    fn may_try(&self) -> bool {
        let due = self.retry_at.load(Ordering::Relaxed);
        due == 0 || (self.now() >= due && self.retry_at.compare_exchange(due, self.next(), Ordering::Relaxed, Ordering::Relaxed).is_ok())
    }

    /// Redis did not answer; whether that is news.
    fn failed(&self) -> bool {
        self.retry_at.swap(self.next(), Ordering::Relaxed) == 0
    }

    /// Redis answered; whether that is news.
    fn succeeded(&self) -> bool {
        self.retry_at.load(Ordering::Relaxed) != 0 && self.retry_at.swap(0, Ordering::Relaxed) != 0
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn next(&self) -> u64 {
        self.now() + u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use fred::prelude::Value;

    use super::*;
    use crate::redis::server::Server;

    /// A busy machine is no outage.
    const LONG: Duration = Duration::from_secs(20);

    /// One of `replicas` processes that count by `server`.
    async fn replica(server: &Server, patience: Duration, replicas: u32) -> Limits {
        Limits::over(server.connect().await, patience, replicas)
    }

    /// How many of `tries` are let in, and how many of the decisions were made alone.
    async fn granted(limits: &Limits, user: UserId, per_user: u32, tries: u32) -> (u64, u64) {
        let before = limits.counts();
        for _ in 0..tries {
            limits.charge(user, per_user, None).await;
        }
        let after = limits.counts();
        assert_eq!(after.granted + after.refused, before.granted + before.refused + u64::from(tries));
        (after.granted - before.granted, after.fallbacks - before.fallbacks)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_clients_of_two_replicas_are_granted_exactly_the_limit() {
        let server = Server::start();
        let replicas = [replica(&server, LONG, 2).await, replica(&server, LONG, 2).await];
        let (user, key) = (UserId::new(), ApiKeyId::new());

        let clients: Vec<_> = (0..8)
            .map(|client| {
                let limits = replicas[client % 2].clone();
                tokio::spawn(async move {
                    let (mut all, mut by_key) = (0, 0);
                    for n in 0..50 {
                        let key = (n % 2 == 0).then_some((key, 30));
                        if let Verdict::Granted { .. } = limits.charge(user, 100, key).await {
                            all += 1;
                            by_key += u32::from(key.is_some());
                        }
                    }
                    (all, by_key)
                })
            })
            .collect();
        let (mut all, mut by_key) = (0, 0);
        for client in clients {
            let granted = client.await.unwrap();
            (all, by_key) = (all + granted.0, by_key + granted.1);
        }

        assert_eq!((all, by_key), (100, 30));
        let counts = replicas.map(|limits| limits.counts());
        assert_eq!(counts.map(|counts| counts.granted).iter().sum::<u64>(), 100);
        assert_eq!(counts.map(|counts| counts.refused).iter().sum::<u64>(), 300);
        assert_eq!(counts.map(|counts| counts.fallbacks), [0, 0]);
    }

    #[tokio::test]
    async fn a_look_costs_nothing_and_agrees_with_what_was_said() {
        let server = Server::start();
        let (limits, user, key) = (replica(&server, LONG, 1).await, UserId::new(), Some((ApiKeyId::new(), 3)));
        let left = |(user, key): (Allowance, Option<Allowance>)| (user.remaining, key.map(|key| key.remaining));

        let verdict = limits.charge(user, 5, key).await;

        let Verdict::Granted { user: of_user, key: of_key, receipt, is_fallback: false } = verdict else { panic!("{verdict:?}") };
        assert_eq!(left((of_user, of_key)), (4, Some(2)));
        for _ in 0..3 {
            assert_eq!(left(limits.peek(user, 5, key).await), (4, Some(2)));
        }
        let refunded = limits.refund(user, 5, key, receipt).await.unwrap();
        assert_eq!((left(refunded), refunded.0.reset_secs), ((5, Some(3)), 0));
    }

    #[tokio::test]
    async fn while_redis_is_away_each_replica_grants_its_part_without_delay() {
        let mut server = Server::start();
        let replicas = [replica(&server, PATIENCE, 2).await, replica(&server, PATIENCE, 2).await];
        let user = UserId::new();
        server.kill();

        let begun = Instant::now();
        for limits in &replicas {
            assert_eq!(granted(limits, user, 10, 100).await, (5, 100));
        }

        // Waiting each time would take thirty seconds.
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_redis_that_does_not_answer_holds_up_nobody() {
        let server = Server::start();
        let (limits, user) = (replica(&server, PATIENCE, 1).await, UserId::new());
        server.stop();

        let begun = Instant::now();
        assert_eq!(granted(&limits, user, 1_000, 200).await, (200, 200));

        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn redis_counts_again_when_it_is_back_and_knows_what_it_knew() {
        let mut server = Server::start();
        let (limits, user) = (replica(&server, LONG, 1).await, UserId::new());
        assert_eq!(granted(&limits, user, 10, 8).await, (8, 0));
        server.kill();
        assert_eq!(granted(&limits, UserId::new(), 10, 1).await, (1, 1));

        server.restart();

        let (another, no_limit) = (UserId::new(), u32::MAX);
        let back = async {
            while granted(&limits, another, no_limit, 1).await != (1, 0) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, back).await.unwrap();
        assert_eq!(granted(&limits, user, 10, 10).await, (2, 0));
    }

    #[tokio::test]
    async fn a_wiped_redis_begins_anew() {
        let server = Server::start();
        let (limits, user) = (replica(&server, LONG, 1).await, UserId::new());
        assert_eq!(granted(&limits, user, 3, 5).await, (3, 0));

        let _: Value = limits.0.redis.flushall(false).await.unwrap();

        assert_eq!(granted(&limits, user, 3, 5).await, (3, 0));
    }

    async fn granted_alone(own: &OwnWindows, quota: Quota) -> usize {
        let mut granted = 0;
        for _ in 0..20 {
            granted += usize::from(own.run(Operation::Charge, quota).await.granted);
        }
        granted
    }

    #[tokio::test]
    async fn a_replica_alone_grants_its_part_and_at_least_one() {
        for (replicas, limit, part) in [(1, 10, 10), (2, 10, 5), (3, 10, 3), (4, 3, 1), (2, 1, 1), (2, 0, 0)] {
            let own = OwnWindows::new(replicas);
            let quota = Quota { user: UserId::new(), per_user: limit, key: None };

            assert_eq!(granted_alone(&own, quota).await, part, "{limit} by {replicas}");
        }
    }

    #[tokio::test]
    async fn a_key_of_its_own_limit_narrows_its_user_alone_too() {
        let own = OwnWindows::new(2);
        let quota = Quota { user: UserId::new(), per_user: 10, key: Some((ApiKeyId::new(), 4)) };

        assert_eq!(granted_alone(&own, quota).await, 2);
        assert_eq!(granted_alone(&own, Quota { key: None, ..quota }).await, 3);
    }

    #[test]
    fn redis_is_left_alone_after_it_did_not_answer() {
        let breaker = Breaker { began: Instant::now().checked_sub(PAUSE).expect("not so early"), ..Breaker::default() };
        assert!(breaker.may_try() && breaker.may_try() && !breaker.succeeded());

        assert!(breaker.failed() && !breaker.failed());

        assert!(!breaker.may_try());
        breaker.retry_at.store(1, Ordering::Relaxed);
        assert!(breaker.may_try() && !breaker.may_try());
        assert!(breaker.succeeded() && breaker.may_try());
    }
}
