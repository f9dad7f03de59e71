//! The Claude CLI: how it is started, confined, spoken to and understood.

pub mod command;
pub mod control;
pub mod failure;
pub mod launch;
pub mod lines;
pub mod process;
pub mod relay;
pub mod sandbox;
pub mod stream;
pub mod upstream;
