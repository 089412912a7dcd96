//! A reader subscribes while the publisher continues: nothing is overwritten, nothing is missed, and the
//! reader is woken.

use ringfence_model::{
    admission::{
        Admission, COMPLETE, Fault, NO_FALSE_ACCUSATION, NOT_OVERWRITTEN, StartFrom, WOKEN, WakeScheme,
    },
    check,
};

fn one(from: StartFrom, messages: u8) -> Admission {
    Admission {
        new_readers: 1,
        messages,
        before: 0,
        from,
        wake_scheme: WakeScheme::None,
        fault: None,
    }
}

fn sleeps(wake_scheme: WakeScheme, messages: u8) -> Admission {
    Admission {
        wake_scheme,
        ..one(StartFrom::Now, messages)
    }
}

fn holds(model: Admission) {
    let form = format!(
        "new readers: {}, from: {:?}, messages: {}, wakeups: {:?}",
        model.new_readers, model.from, model.messages, model.wake_scheme
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
    for wake_scheme in [
        WakeScheme::PublisherFences,
        WakeScheme::ReaderMembarrier,
        WakeScheme::FencesSinceAdmission,
    ] {
        holds(sleeps(wake_scheme, 2));
    }
}

#[test]
fn checker_finds_each_fault() {
    use Fault::*;
    let fences_since_admission = sleeps(WakeScheme::FencesSinceAdmission, 2);
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
        (WOKEN, sleeps(WakeScheme::PublisherFences, 4), &[SharedGeneration]),
        (
            WOKEN,
            sleeps(WakeScheme::PublisherFences, 2),
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
