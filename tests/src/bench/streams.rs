//! What it costs to stream a job's events, beside the least that could do the same: the same bytes from a bare
//! server, the same script in the same Redis, the same CLI read from its pipe. Load and servers are processes
//! of their own, and every stream is held to its content while it is measured.

pub mod bare;
pub mod claim;
pub mod crowd;
pub mod fan_out;
pub mod first_event;
pub mod flood;
pub mod idle;
pub mod part;
pub mod said;
pub mod side;
pub mod vitals;
pub mod watchers;
pub mod wire;
