//! The process at the other end: what the kernel says of it, and whether the policy lets it in.
//!
//! `process` asks the kernel. `namespace` compares the process's namespaces with ours, `cgroup` finds a cgroup by its name,
//! `hash` reads an executable's content, `proc` reads the process's files in /proc. `policy` compares what was found with what
//! was asked for. `authorize` asks the program's own callback last. What was found is plain data, in `identity` beside this
//! folder.
//!
//! Two rules hold in every file: what cannot be looked up is a refusal, and what this process lacks itself (descriptors,
//! memory) is an error of its own, never the peer's fault.
//!
//! May import `wait`, `sys` and what the whole crate shares. It never sends anything.

pub(crate) mod authorize;
mod cgroup;
pub(crate) mod hash;
pub(crate) mod namespace;
pub(crate) mod policy;
pub(crate) mod proc;
pub(crate) mod process;
