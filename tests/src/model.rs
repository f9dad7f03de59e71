//! A model without a mind: a prompt tells it what to answer. Both doubles speak for it, the Messages API
//! over HTTP and the CLI over its output, so a script means the same whichever edge it replaces.

mod api_error;
mod cli_fault;
mod event;
mod filling;
mod prose;
mod reply;
mod said;
mod script;
mod usage;

pub use api_error::ApiError;
pub use cli_fault::{CliFault, TranscriptFault};
pub use event::{ModelEvent, events};
pub use filling::{filling, filling_from};
pub use prose::prose;
pub use reply::{Block, Reply, StopReason, ToolResult, clock};
pub use said::{is_from_the_cli, said_in};
pub use script::{Pace, Script, Settings, Step, ToolCall};
pub use usage::Usage;

/// An id nobody used before, such as `msg_mock1c64527281ec403b`.
pub fn fresh_id(prefix: &str) -> String {
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(16);
    format!("{prefix}_mock{id}")
}
