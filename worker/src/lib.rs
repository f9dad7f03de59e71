//! Turns jobs into Claude CLI processes and their output into events.

pub mod claude;
pub mod supervise;
