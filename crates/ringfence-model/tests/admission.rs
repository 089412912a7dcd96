//! A reader subscribes while the publisher continues: nothing is overwritten, nothing is missed, and the
//! reader is woken.

use ringfence_model::{
    admission::{
        Admission, COMPLETE, Fault, NO_FALSE_ACCUSATION, NOT_OVERWRITTEN, StartFrom, WOKEN, Wakeups,
    },
    check,
};

fn one(from: StartFrom, messages: u8) -> Admission {
    Admission {
        new_readers: 1,
        messages,
        before: 0,
        from,
        wakeups: Wakeups::None,
        fault: None,
    }
}

fn sleeps(wakeups: Wakeups, messages: u8) -> Admission {
    Admission {
        wakeups,
        ..one(StartFrom::Now, messages)
    }
}

fn holds(model: Admission) {
    let form = format!(
        "new readers: {}, from: {:?}, messages: {}, wakeups: {:?}",
        model.new_readers, model.from, model.messages, model.wakeups
    );
    check::holds("admission", &form, model);
}

#[test]
fn first_message_of_a_new_reader_is_kept() {
    for from in [StartFrom::Now, StartFrom::Oldest, StartFrom::Latest] {
        holds(one(from, 4));
    }
}

#[test]
fn sleeping_new_reader_is_woken() {
    for wakeups in [
        Wakeups::PublisherFences,
        Wakeups::ReaderMembarrier,
        Wakeups::FencesSinceAdmission,
    ] {
        holds(sleeps(wakeups, 2));
    }
}

#[test]
fn checker_finds_each_fault() {
    use Fault::*;
    let fences_since_admission = sleeps(Wakeups::FencesSinceAdmission, 2);
    let entry: &[Fault] = &[
        NoFenceAfterEntry,
        IntentCheckedBeforeEntry,
        GenerationBeforeEntry,
        NoFenceAfterIntent,
        IntentAfterGenerationCheck,
        ListBeforeGeneration,
    ];
    for (property, model, faults) in [
        (NOT_OVERWRITTEN, one(StartFrom::Oldest, 4), entry),
        (NOT_OVERWRITTEN, one(StartFrom::Now, 4), &[HeadBeforeCopy]),
        (NO_FALSE_ACCUSATION, one(StartFrom::Now, 5), &[ActiveBeforeHead]),
        (COMPLETE, one(StartFrom::Now, 4), &[StartAtFirstCheck]),
        (WOKEN, sleeps(Wakeups::PublisherFences, 4), &[SharedGeneration]),
        (
            WOKEN,
            sleeps(Wakeups::PublisherFences, 2),
            &[ListCheckBeforeFence],
        ),
        (
            WOKEN,
            fences_since_admission,
            &[NoAdmissionBarrier, NoFenceAtFirstCheck],
        ),
    ] {
        for &fault in faults {
            let model = Admission {
                fault: Some(fault),
                ..model
            };
            check::finds("admission", &fault, property, model);
        }
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn two_readers_subscribe_concurrently() {
    holds(Admission {
        new_readers: 2,
        before: 2,
        ..one(StartFrom::Oldest, 3)
    });
}
