//! Turns jobs into Claude CLI processes and their output into events.

pub mod announcement;
pub mod chat;
pub mod claude;
pub mod config;
pub mod conversation;
pub mod http;
pub mod job_dir;
pub mod mcp;
pub mod metrics;
pub mod processes;
pub mod runner;
pub mod strays;
pub mod supervise;
pub mod tools;
pub mod transcript;
pub mod tree;
pub mod workshop;
pub mod workspace;
