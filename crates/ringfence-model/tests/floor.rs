//! No torn message and an exact count: a reader that is overtaken by a publisher that moves its floor.

use ringfence_model::{
    check,
    floor::{Delivery, EXACT, Fault, Floor, NEVER_ACCUSED, NEVER_TORN, PROGRESS},
};

const DELIVERIES: [Delivery; 2] = [Delivery::BestEffort, Delivery::Latest];

fn holds(sizes: &'static [u8]) {
    for delivery in DELIVERIES {
        let form = format!("{delivery:?}, messages of {sizes:?} cells");
        let model = Floor {
            sizes,
            delivery,
            fault: None,
        };
        check::holds("floor", &form, model);
    }
}

#[test]
fn overtaken_reader_returns_whole_messages_and_counts() {
    holds(&[1, 2, 1, 2, 1, 1]);
    holds(&[2, 1, 1, 2, 1, 2, 1]);
}

#[test]
fn checker_finds_each_fault() {
    let short: &[u8] = &[1, 2, 1, 2, 1];
    let long: &[u8] = &[1, 2, 1, 2, 1, 1, 1, 1];
    for (fault, broken, delivery, sizes) in [
        (Fault::WritesWithoutFence, NEVER_TORN, Delivery::BestEffort, short),
        (Fault::WritesFirst, NEVER_TORN, Delivery::BestEffort, short),
        (Fault::LooksWithoutFence, NEVER_TORN, Delivery::BestEffort, short),
        (Fault::LooksFirst, NEVER_TORN, Delivery::BestEffort, short),
        (Fault::JudgesFirst, NEVER_ACCUSED, Delivery::BestEffort, short),
        (Fault::FloorBeforeTail, NEVER_ACCUSED, Delivery::BestEffort, short),
        (Fault::BelievesMarks, EXACT, Delivery::BestEffort, long),
        (Fault::TakesAnyMark, PROGRESS, Delivery::BestEffort, long),
        (Fault::MarksPositionFirst, EXACT, Delivery::BestEffort, long),
        (Fault::MarksRelaxed, EXACT, Delivery::BestEffort, long),
        (Fault::ReadsMarksRelaxed, EXACT, Delivery::BestEffort, long),
        (Fault::MarksBeforeTheFloor, EXACT, Delivery::BestEffort, long),
        (
            Fault::FloorPastTheMarks,
            NEVER_ACCUSED,
            Delivery::BestEffort,
            short,
        ),
        (Fault::FloorRelaxed, NEVER_ACCUSED, Delivery::Latest, short),
    ] {
        let model = Floor {
            sizes,
            delivery,
            fault: Some(fault),
        };
        check::finds("floor", &fault, broken, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn more_messages() {
    holds(&[1, 2, 1, 2, 1, 1, 1, 1]);
    holds(&[2, 1, 1, 2, 1, 2, 1, 1, 2, 1]);
}
