//! The operations, one file for each noun. A file owns its paths completely: what they take, what they
//! answer, and what they do.

pub mod admin;
pub mod api_keys;
pub mod auth;
pub mod chat;
pub mod events;
pub mod files;
pub mod health;
pub mod jobs;
pub mod quota;
pub mod sessions;
pub mod socket;
pub mod tools;
pub mod usage;
