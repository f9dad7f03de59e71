//! The edge to the operating system, with real processes, the real bwrap and real sockets.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod process;
mod relay;
mod room;
mod sandbox;
mod supervise;
