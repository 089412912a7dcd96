//! What only tests and the fuzzer use: a memory that loom can watch, the entry points of the fuzz targets, a channel's parts without
//! a handshake, and how often chance is tried.

#[cfg(test)]
pub(crate) mod chance;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
pub(crate) mod loomed;
#[cfg(any(test, fuzzing))]
pub(crate) mod parts;
