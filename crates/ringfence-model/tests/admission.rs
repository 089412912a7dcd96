//! A reader subscribes while the publisher continues: nothing is overwritten, nothing is missed, and the
//! reader is woken.

use ringfence_model::{
    admission::{Admission, Bells, COMPLETE, Fault, From, HONEST, KEPT, RUNG},
    check,
};

fn one(from: From, messages: u8) -> Admission {
    Admission {
        newcomers: 1,
        messages,
        before: 0,
        from,
        bells: Bells::None,
        fault: None,
    }
}

fn sleeps(bells: Bells, messages: u8) -> Admission {
    Admission {
        bells,
        ..one(From::Now, messages)
    }
}

fn holds(model: Admission) {
    let form = format!(
        "newcomers: {}, from: {:?}, messages: {}, bells: {:?}",
        model.newcomers, model.from, model.messages, model.bells
    );
    check::holds("admission", &form, model);
}

#[test]
fn first_message_of_a_new_reader_is_kept() {
    for from in [From::Now, From::Oldest, From::Latest] {
        holds(one(from, 4));
    }
}

#[test]
fn sleeping_new_reader_is_woken() {
    for bells in [Bells::Fences, Bells::Membarrier, Bells::FencesFromNowOn] {
        holds(sleeps(bells, 2));
    }
}

#[test]
fn checker_finds_each_fault() {
    for (fault, broken, model) in [
        (Fault::EntersWithoutFence, KEPT, one(From::Oldest, 4)),
        (Fault::LooksFirst, KEPT, one(From::Oldest, 4)),
        (Fault::TellsFirst, KEPT, one(From::Oldest, 4)),
        (Fault::IntendsWithoutFence, KEPT, one(From::Oldest, 4)),
        (Fault::IntendsLate, KEPT, one(From::Oldest, 4)),
        (Fault::TakesTheListFirst, KEPT, one(From::Oldest, 4)),
        (Fault::LetsGoFirst, KEPT, one(From::Now, 4)),
        (Fault::ActiveBeforeItsHead, HONEST, one(From::Now, 5)),
        (Fault::BeginsAtTheFirstLook, COMPLETE, one(From::Now, 4)),
        (Fault::OneNoteOfTheGeneration, RUNG, sleeps(Bells::Fences, 4)),
        (Fault::ListBeforeTheFence, RUNG, sleeps(Bells::Fences, 2)),
        (
            Fault::AdmitsWithoutBarrier,
            RUNG,
            sleeps(Bells::FencesFromNowOn, 2),
        ),
        (
            Fault::FirstLookWithoutFence,
            RUNG,
            sleeps(Bells::FencesFromNowOn, 2),
        ),
    ] {
        let model = Admission {
            fault: Some(fault),
            ..model
        };
        check::finds("admission", &fault, broken, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn two_new_readers_at_the_same_time() {
    holds(Admission {
        newcomers: 2,
        before: 2,
        ..one(From::Oldest, 3)
    });
}
