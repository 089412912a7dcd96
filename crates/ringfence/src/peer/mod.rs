//! The process at the other end: what the kernel says about it, and whether the policy accepts it.
//!
//! `process` asks the kernel. `namespace` compares the peer's namespaces with ours, finds a cgroup by its name,
//! and reads the peer's files in /proc. `confinement` checks whether the kernel confines each of its threads. `executable` reads an executable's content. `policy` compares the
//! findings with the requirements. `authorize` calls the program's own callback last. The
//! findings are plain data, defined in `identity` next to this folder. `family` has the processes of a child, and kills them.
//!
//! Two rules hold in every file. A failed lookup is a refusal. A local shortage (descriptors, memory) is a
//! local error and never the peer's fault.
//!
//! May import `wait`, `fork`, `sys` and the modules that the whole crate shares. It sends nothing to a peer.

pub(crate) mod authorize;
pub(crate) mod confinement;
pub(crate) mod executable;
pub(crate) mod family;
pub(crate) mod namespace;
pub(crate) mod policy;
pub(crate) mod process;
