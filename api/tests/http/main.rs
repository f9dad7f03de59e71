//! The whole HTTP surface over a real Redis and a real database. Jobs are run by a hand that holds leases
//! as a worker does.

mod accounts;
mod admin;
mod authorization;
mod chat;
mod connections;
mod contract;
mod dashboard;
mod events;
mod feed;
mod files;
mod health;
mod jobs;
mod keys;
mod limit;
mod operators;
mod problems;
mod quota;
mod sessions;
#[path = "../../../tests/src/socket.rs"]
mod socket;
mod sockets;
mod stage;
mod tools;
mod usage;
