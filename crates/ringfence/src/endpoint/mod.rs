//! A publisher's sending half and a subscription.

pub(crate) mod broadcast;
