//! The places at which processes meet: what a program calls to get a channel.
//!
//! `pair` is two equals at an address, `service` one host and many agents, `membership` two of which one may be
//! replaced, `child` a parent and a process that it starts, `broadcast` a publisher and its subscribers. What stays at an address
//! (a service, a membership, a publisher) is built from the same parts: `standing` takes the address for what is alone there;
//! `shared` is what its handle, its worker thread and its channels have in common; `handle` is the program's side and the worker;
//! `acceptor` runs the handshakes of one address side by side; `admission` asks who gets a seat, and `seats` counts those that are
//! taken; `ledger` counts what has come; `events` keeps what has happened until the program asks for it. `calling` is how a guest
//! reaches a host that stays.
//!
//! May import every folder below it. Nothing below imports an endpoint: a channel does not know how its two ends met.

pub(crate) mod acceptor;
pub(crate) mod admission;
pub(crate) mod broadcast;
pub(crate) mod calling;
pub(crate) mod child;
pub(crate) mod events;
pub(crate) mod handle;
pub(crate) mod ledger;
pub(crate) mod membership;
pub(crate) mod pair;
pub(crate) mod seats;
pub(crate) mod service;
pub(crate) mod shared;
pub(crate) mod standing;
