//! Both sides end, close or are killed while messages are in the ring.

use ringfence_model::{
    check,
    closing::{ALL_READ, CUT_OFF_REPORTED, Closing, Fault, WOKEN},
};

fn model(messages: [u8; 2]) -> Closing {
    Closing {
        messages,
        sleeps: false,
        early_closes: false,
        kills: false,
        fault: None,
    }
}

fn holds(model: Closing) {
    let form = format!(
        "messages: {:?}, asleep: {}, closes before: {}, killed: {}",
        model.messages, model.sleeps, model.early_closes, model.kills
    );
    check::holds("closing", &form, model);
}

#[test]
fn messages_are_read_before_the_end_is_reported() {
    let asleep = Closing {
        sleeps: true,
        ..model([0, 0])
    };
    holds(model([1, 1]));
    holds(asleep);
}

#[test]
fn checker_finds_each_fault() {
    let kills = Closing {
        kills: true,
        ..model([1, 0])
    };
    let sleeps = Closing {
        sleeps: true,
        ..model([0, 0])
    };
    for (fault, property, model) in [
        (Fault::NoTailRecheck, ALL_READ, model([1, 0])),
        (Fault::EndBeforePublish, ALL_READ, model([1, 0])),
        (Fault::PhaseStoredRelaxed, ALL_READ, model([1, 0])),
        (Fault::PhaseLoadedRelaxed, ALL_READ, model([1, 0])),
        (Fault::EndWithoutWakeup, WOKEN, sleeps),
        (Fault::CloseOverwritesEnd, CUT_OFF_REPORTED, model([0, 0])),
        (Fault::NoLastTailCheck, ALL_READ, kills),
    ] {
        let model = Closing {
            fault: Some(fault),
            ..model
        };
        check::finds("closing", &fault, property, model);
    }
}

#[test]
fn messages_are_read_if_a_side_closes_or_is_killed() {
    holds(Closing {
        early_closes: true,
        ..model([1, 0])
    });
    holds(Closing {
        kills: true,
        ..model([1, 0])
    });
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn sleeping_readers_are_woken_for_messages_and_for_the_end() {
    holds(Closing {
        sleeps: true,
        ..model([1, 0])
    });
}
