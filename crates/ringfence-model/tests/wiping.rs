//! A ring is wiped while slices of it are handed out.

use ringfence_model::{
    check,
    wiping::{ALL_WIPED, Barriers, Fault, NOT_TOUCHED, Wiping},
};

fn model(barriers: Barriers) -> Wiping {
    Wiping {
        slices: 2,
        barriers,
        fault: None,
    }
}

fn holds(model: Wiping) {
    let form = format!("slices: {}, barriers: {:?}", model.slices, model.barriers);
    check::holds("wiping", &form, model);
}

#[test]
fn borrowed_slices_are_skipped_and_wiped_later() {
    for barriers in [Barriers::Both, Barriers::Alarm] {
        for slices in [2, 3] {
            holds(Wiping {
                slices,
                ..model(barriers)
            });
        }
    }
}

#[test]
fn checker_finds_each_fault() {
    use Barriers::{Alarm, Both};
    for (fault, barriers, broken) in [
        (Fault::LooksFirst, Both, NOT_TOUCHED),
        (Fault::LooksFirst, Alarm, NOT_TOUCHED),
        (Fault::ProducerWithoutFence, Both, NOT_TOUCHED),
        (Fault::AlarmWithoutBarrier, Alarm, NOT_TOUCHED),
        (Fault::ForgetsWhatWasReplaced, Both, ALL_WIPED),
        (Fault::ForgetsWhatWasReplaced, Alarm, ALL_WIPED),
        (Fault::LetsGoWithoutALook, Alarm, ALL_WIPED),
        (Fault::LongInPlaceOfLong, Alarm, ALL_WIPED),
        (Fault::GoesOnAfterALook, Both, ALL_WIPED),
        (Fault::GoesOnAfterALook, Alarm, ALL_WIPED),
        (Fault::LengthLast, Alarm, ALL_WIPED),
    ] {
        let model = Wiping {
            fault: Some(fault),
            ..model(barriers)
        };
        check::finds("wiping", &fault, broken, model);
    }
}
