//! The Node-API binding of ringfence: conversion only. What is decided is decided in the core; what a user sees is
//! made in TypeScript.

mod answers;
mod asking;
mod channel;
mod convert;
mod family;
mod join;
mod listener;
mod membership;
mod messenger;
mod once;
mod raw;
mod watched;
mod watcher;
