//! The parts of the benchmark, which ../scale uses as well.

pub mod clock;
pub mod contenders;
pub mod driver;
pub mod line;
pub mod machine;
pub mod plan;
#[cfg(feature = "ringfence")]
pub mod ringfence;
pub mod work;
