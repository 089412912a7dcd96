//! The phases of a channel's two regions, in every order in which two processes and their threads can meet.

use ringfence_model::ending::{Ending, Fault};
use stateright::{Checker, HasDiscoveries, Model};

#[test]
fn every_end_is_told_as_what_it_was() {
    let checked = Ending { fault: None }.checker().spawn_bfs().join();
    checked.assert_properties();
    assert!(checked.is_done(), "every state was visited");
}

#[test]
fn the_checker_finds_each_fault() {
    for (fault, broken) in [
        (
            Fault::EndsWithoutLock,
            "a process that lives is not told to have ended",
        ),
        (Fault::EndsWithoutLock, "never two hosts"),
        (Fault::EndsWithoutLock, "wiped bytes are not handed out"),
        (Fault::EndsWithoutLock, "what has ended is not seen open again"),
        (
            Fault::EndsWithoutLock,
            "the address of a living host is not removed",
        ),
        (
            Fault::HangsUpFirst,
            "a process that lives is not told to have ended",
        ),
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
        let found = Ending { fault: Some(fault) }
            .checker()
            .finish_when(HasDiscoveries::AnyOf([broken].into()))
            .spawn_bfs()
            .join();
        assert!(
            found.discovery(broken).is_some(),
            "{fault:?} breaks nothing of {broken:?}"
        );
    }
}
