//! The parts of the benchmark.

#[cfg(feature = "ringfence")]
pub mod broadcast;
pub mod clock;
pub mod contenders;
pub mod driver;
pub mod line;
#[cfg(feature = "ringfence")]
pub mod ringfence;
#[cfg(feature = "ringfence")]
pub mod scale;
pub mod work;
