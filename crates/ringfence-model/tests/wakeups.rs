//! An event loop waits for one half of a channel, a thread for the other.

use ringfence_model::{
    check,
    wakeups::{Fault, NO_HALF_ASLEEP, Wakeups},
};

fn model(messages: u8) -> Wakeups {
    Wakeups {
        messages,
        edge_triggered: false,
        may_defer: false,
        fault: None,
    }
}

fn holds(model: Wakeups) {
    let Wakeups {
        messages,
        edge_triggered,
        may_defer,
        ..
    } = model;
    let form = format!(
        "messages for each half: {messages}, edge_triggered: {edge_triggered}, may_defer: {may_defer}"
    );
    check::holds("wakeups", &form, model);
}

#[test]
fn each_half_is_woken_for_its_messages() {
    holds(model(2));
    holds(Wakeups {
        edge_triggered: true,
        ..model(2)
    });
    holds(Wakeups {
        may_defer: true,
        ..model(2)
    });
}

#[test]
fn checker_finds_each_fault() {
    for fault in [
        Fault::LoopConsumesWakeup,
        Fault::ThreadConsumesWakeup,
        Fault::ReadAlongsideLoop,
        Fault::LoopPollsLineBeingRead,
        Fault::NoNotifyAfterRead,
        Fault::LoopReadsLineBeingPolled,
        Fault::NewWakeupsSkipped,
        Fault::ReadAfterArming,
    ] {
        let model = Wakeups {
            fault: Some(fault),
            ..model(2)
        };
        check::finds("wakeups", &fault, NO_HALF_ASLEEP, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn more_messages() {
    holds(Wakeups {
        may_defer: true,
        ..model(3)
    });
}
