//! What can go wrong, and how often each of it does.

use crate::servers::Kind;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A worker is killed, and started again after a while.
    WorkerKill,
    /// A worker stands still for longer than it may be silent.
    WorkerFreeze,
    /// A CLI is killed.
    CliKill,
    /// The parent of a CLI is killed.
    SupervisorKill,
    /// An api is killed, and started again.
    ApiKill,
    /// The process that leads is killed, and started again.
    LeaderKill,
    /// Redis is killed, and started again with what it had written down.
    RedisKill,
    /// The same, and the last of what it had written down is gone.
    RedisTailLost,
    /// Redis stands still.
    RedisFreeze,
    /// Redis is wiped.
    Flush,
    /// Redis takes no more data for a while.
    RedisFull,
    /// Redis ends the connections of its clients.
    ClientsEnded,
    /// Redis ends the connections of its subscribers.
    SubscribersEnded,
    /// An answer of Redis or of the database is lost, with its connection.
    ReplyLost,
    /// One process cannot reach Redis.
    RedisUnreachable,
    /// One process cannot reach the database.
    DatabaseUnreachable,
    /// The database ends all connections.
    BackendsEnded,
    /// The database crashes, and is started again after a while.
    DatabaseCrash,
    /// A worker is told to stop, and started again.
    Drain,
    /// Of three workers two are told to stop; then there are four.
    Scale,
}

impl Fault {
    /// How often each is made over this kind of database: one host's file cannot be out of reach.
    pub fn weights(kind: Kind) -> Vec<(Self, u32)> {
        let everywhere = [
            (Self::WorkerKill, 4),
            (Self::WorkerFreeze, 3),
            (Self::CliKill, 1),
            (Self::SupervisorKill, 1),
            (Self::ApiKill, 3),
            (Self::LeaderKill, 2),
            (Self::RedisKill, 2),
            (Self::RedisTailLost, 1),
            (Self::RedisFreeze, 2),
            (Self::Flush, 1),
            (Self::RedisFull, 1),
            (Self::ClientsEnded, 2),
            (Self::SubscribersEnded, 1),
            (Self::ReplyLost, 3),
            (Self::RedisUnreachable, 3),
            (Self::Drain, 2),
            (Self::Scale, 1),
        ];
        let network = [(Self::DatabaseUnreachable, 3), (Self::BackendsEnded, 2), (Self::DatabaseCrash, 2)];
        everywhere.into_iter().chain(network.into_iter().filter(|_| kind == Kind::Postgres)).collect()
    }
}
