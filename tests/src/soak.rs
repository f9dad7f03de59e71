//! The service under a steady load for as long as one likes, and what its processes and Redis hold meanwhile:
//! whatever grows with time, and not with the load, is a leak. What the load says is held to its content, too.

pub mod load;
pub mod sample;
pub mod trend;
