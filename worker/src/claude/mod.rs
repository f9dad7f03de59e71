//! The Claude CLI: how it is started, confined, spoken to and understood.

pub mod command;
pub mod control;
pub mod failure;
pub mod stream;
