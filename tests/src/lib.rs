//! The ends of the system tests: a model that says what a test asks for, the Messages API and the CLI
//! that speak for it, and recordings of the real CLI that hold both to the truth.

pub mod bench;
pub mod brood;
pub mod chaos;
pub mod cli_process;
pub mod client;
pub mod collector;
pub mod directory;
pub mod exposition;
pub mod fake_claude;
pub mod follower;
pub mod hand;
pub mod mock_anthropic;
pub mod mock_mcp;
pub mod model;
pub mod nginx;
pub mod product_reads;
pub mod prometheus;
pub mod proxy;
pub mod record;
pub mod recording;
pub mod runs;
pub mod servers;
pub mod sessions;
pub mod soak;
pub mod socket;
pub mod system;
