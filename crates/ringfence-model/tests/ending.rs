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
    for (fault, broken) in [
        (
            Fault::EndsWithoutLock,
            "a living process is never reported as ended",
        ),
        (Fault::EndsWithoutLock, "never two hosts"),
        (Fault::EndsWithoutLock, "wiped bytes are not handed out"),
        (
            Fault::EndsWithoutLock,
            "a channel that has ended is not seen open again",
        ),
        (
            Fault::EndsWithoutLock,
            "the address of a living host is not removed",
        ),
        (Fault::HangsUpFirst, "a living process is never reported as ended"),
        (
            Fault::WipesWhatTheRefusedHasNotRead,
            "wiped bytes are not handed out",
        ),
        (Fault::WipesBeforeItSaysSo, "wiped bytes are not handed out"),
        (Fault::ForgetsItsOwnEnd, "wiped bytes are not handed out"),
        (Fault::LooksAtItsStateAlone, "wiped bytes are not handed out"),
        (Fault::TakesOverWhateverTheEnd, "never two hosts"),
        (
            Fault::RemovesWithoutAnAnswer,
            "the address of a living host is not removed",
        ),
    ] {
        check::finds("ending", &fault, broken, Ending { fault: Some(fault) });
    }
}
