//! An event loop waits for one half of a channel, a thread for the other.

use ringfence_model::{
    bells::{Bells, Fault, NO_STANDSTILL},
    check,
};

fn model(messages: u8) -> Bells {
    Bells {
        messages,
        edge: false,
        later: false,
        fault: None,
    }
}

fn holds(model: Bells) {
    let Bells {
        messages,
        edge,
        later,
        ..
    } = model;
    let form = format!("messages for each half: {messages}, edge: {edge}, later: {later}");
    check::holds("bells", &form, model);
}

#[test]
fn each_half_is_woken_for_its_messages() {
    holds(model(2));
    holds(Bells {
        edge: true,
        ..model(2)
    });
    holds(Bells {
        later: true,
        ..model(2)
    });
}

#[test]
fn checker_finds_each_fault() {
    for fault in [
        Fault::LoopTakesTheBell,
        Fault::ThreadTakesTheBell,
        Fault::ReadsBesideALoop,
        Fault::PollsWhatIsRead,
        Fault::ReaderTellsNone,
        Fault::ReadsFromAPoller,
        Fault::TellsOfNothingKnown,
        Fault::ReadsAfterArming,
    ] {
        let model = Bells {
            fault: Some(fault),
            ..model(2)
        };
        check::finds("bells", &fault, NO_STANDSTILL, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn more_messages() {
    holds(Bells {
        later: true,
        ..model(3)
    });
}
