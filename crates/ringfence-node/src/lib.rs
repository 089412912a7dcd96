//! The Node-API binding of ringfence: conversion only. What is decided is decided in the core; what a user sees is
//! made in TypeScript.

mod answers;
mod authorize;
mod begin;
mod broadcast;
mod channel;
mod child;
mod convert;
mod handle;
mod membership;
mod poll;
mod raw;
mod reading;
mod sending;
mod service;
mod task;
mod threadsafe;
