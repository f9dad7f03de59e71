//! Turns jobs into Claude CLI processes and their output into events.

pub mod chat;
pub mod claude;
pub mod config;
pub mod job_dir;
pub mod runner;
pub mod supervise;
