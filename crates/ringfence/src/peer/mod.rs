//! Who the process at the other end is, and whether it may be there.
//!
//! `identity` asks the kernel; `namespace` says whether its namespaces are ours; `hash` reads an executable's content; `policy` compares what was found with what was asked
//! for; `authorize` asks the program's own callback last.
//!
//! Two rules hold in every file: what cannot be looked up is a refusal, and what this process lacks itself (descriptors,
//! memory) is an error of its own, never the peer's fault.
//!
//! May import `wait`, `sys` and what the whole crate shares. It never sends anything.

pub(crate) mod authorize;
pub(crate) mod hash;
pub(crate) mod identity;
pub(crate) mod namespace;
pub(crate) mod policy;
