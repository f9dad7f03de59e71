//! Turns jobs into Claude CLI processes and their output into events.

pub mod announcement;
pub mod chat;
pub mod claude;
pub mod config;
pub mod http;
pub mod job_dir;
pub mod metrics;
pub mod runner;
pub mod supervise;
pub mod tools;
pub mod workshop;
