//! The whole product: real binaries, a real Redis, both databases, the real CLI or the scripted one.

mod access;
mod accounts;
mod answer;
mod broken_transcripts;
mod cancel;
mod cli_faults;
mod clients;
mod crash;
mod crowd;
mod dead_letters;
mod drain;
mod many_sessions;
mod mcp;
mod metrics;
mod options;
mod outage;
mod schema;
mod schemathesis;
mod secrets;
mod sessions;
mod spending;
mod stalled;
mod stats;
mod streams;
mod tools;
mod workspaces;
