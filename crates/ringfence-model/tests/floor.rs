//! No torn message and an exact count: a reader that is overtaken by a publisher that moves its floor.

use ringfence_model::{
    check,
    floor::{Delivery, EXACT_COUNT, Fault, Floor, NEVER_TORN, NO_FALSE_ACCUSATION, PROGRESS},
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
    use Delivery::{BestEffort, Latest};
    use Fault::*;
    let short: &[u8] = &[1, 2, 1, 2, 1];
    let long: &[u8] = &[1, 2, 1, 2, 1, 1, 1, 1];
    let floor: &[Fault] = &[
        NoFenceAfterFloor,
        WriteBeforeFloor,
        NoFenceBeforeFloorCheck,
        FloorCheckBeforeCopy,
    ];
    let marks: &[Fault] = &[
        NoMarkRecheck,
        PositionBeforeNumber,
        MarkStoredRelaxed,
        MarkLoadedRelaxed,
        MarkBeforeFloor,
    ];
    let order: &[Fault] = &[HeaderCheckBeforeFloor, FloorBeforeTail, FloorPastMarks];
    for (property, delivery, sizes, faults) in [
        (NEVER_TORN, BestEffort, short, floor),
        (NO_FALSE_ACCUSATION, BestEffort, short, order),
        (NO_FALSE_ACCUSATION, Latest, short, &[FloorRelaxed]),
        (EXACT_COUNT, BestEffort, long, marks),
        (PROGRESS, BestEffort, long, &[MarkBelowFloor]),
    ] {
        for &fault in faults {
            let model = Floor {
                sizes,
                delivery,
                fault: Some(fault),
            };
            check::finds("floor", &fault, property, model);
        }
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn more_messages() {
    holds(&[1, 2, 1, 2, 1, 1, 1, 1]);
    holds(&[2, 1, 1, 2, 1, 2, 1, 1, 2, 1]);
}
