//! A ring is wiped while slices of it are handed out.

use ringfence_model::{
    check,
    wiping::{ALL_WIPED, Barriers, Fault, SLICE_INTACT, Wiping},
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
    for (fault, barriers, property) in [
        (Fault::CheckBeforeAnnouncement, Both, SLICE_INTACT),
        (Fault::CheckBeforeAnnouncement, Alarm, SLICE_INTACT),
        (Fault::NoProducerFence, Both, SLICE_INTACT),
        (Fault::NoAlarmBarrier, Alarm, SLICE_INTACT),
        (Fault::ReplacedRangeNotWiped, Both, ALL_WIPED),
        (Fault::ReplacedRangeNotWiped, Alarm, ALL_WIPED),
        (Fault::NoCheckOnRelease, Alarm, ALL_WIPED),
        (Fault::LongReplacesLong, Alarm, ALL_WIPED),
        (Fault::LengthStoredAfterWipe, Both, ALL_WIPED),
        (Fault::LengthStoredAfterWipe, Alarm, ALL_WIPED),
        (Fault::LengthAfterRange, Alarm, ALL_WIPED),
    ] {
        let model = Wiping {
            fault: Some(fault),
            ..model(barriers)
        };
        check::finds("wiping", &fault, property, model);
    }
}
