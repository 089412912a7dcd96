//! Test support: the entry points of the fuzz targets, hostile peers, a memory that loom can watch, a
//! channel's parts without a handshake, and the number of random cases.
//!
//! `lies` and `fan_out_lies` are modules of `ring` and `ring::fan_out`, whose private fields they check.

#[cfg(test)]
pub(crate) mod chance;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
pub(crate) mod loomed;
#[cfg(any(test, fuzzing))]
pub(crate) mod parts;
