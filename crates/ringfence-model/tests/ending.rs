//! The phases of a channel's two regions, in every interleaving of two processes and their threads.

use ringfence_model::{
    check,
    ending::{Ending, Fault},
};

#[test]
fn every_end_is_reported_correctly() {
    check::holds("ending", "a host and its guest", Ending { fault: None });
}

#[test]
fn checker_finds_each_fault() {
    for (fault, property) in [
        (
            Fault::EndWithoutLock,
            "a living process is never reported as ended",
        ),
        (Fault::EndWithoutLock, "never two hosts"),
        (Fault::EndWithoutLock, "wiped bytes are not handed out"),
        (
            Fault::EndWithoutLock,
            "a channel that has ended is not seen open again",
        ),
        (
            Fault::EndWithoutLock,
            "the address of a living host is not removed",
        ),
        (
            Fault::ShutdownBeforePhase,
            "a living process is never reported as ended",
        ),
        (Fault::WipeUnreadOnRefusal, "wiped bytes are not handed out"),
        (Fault::WipeBeforePhase, "wiped bytes are not handed out"),
        (Fault::NoOwnEndCheck, "wiped bytes are not handed out"),
        (Fault::OwnStateCheckedOnly, "wiped bytes are not handed out"),
        (Fault::TakeOverOnEveryEnd, "never two hosts"),
        (
            Fault::RemoveWithoutAnswer,
            "the address of a living host is not removed",
        ),
    ] {
        check::finds("ending", &fault, property, Ending { fault: Some(fault) });
    }
}
