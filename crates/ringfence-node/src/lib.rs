//! The Node-API binding of ringfence. It only converts values: the core makes all decisions, and TypeScript
//! provides the public API.

mod answers;
mod attachments;
mod authorize;
mod begin;
mod broadcast;
mod channel;
mod child;
mod convert;
mod handle;
mod membership;
mod notifier;
mod poll;
mod raw;
mod reading;
mod sending;
mod service;
mod task;
mod threadsafe;
