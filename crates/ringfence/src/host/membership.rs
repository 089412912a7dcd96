//! A membership: two members that share an address, and keep it while one of them is replaced.

pub(crate) mod change;
pub(crate) mod keeper;
pub(crate) mod member;
pub(crate) mod successor;
