//! What only tests and the fuzzer use: a memory that loom can watch, and the entry points of the fuzz targets.

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
#[cfg(test)]
pub(crate) mod loomed;
