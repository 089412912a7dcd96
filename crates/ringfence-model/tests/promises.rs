//! The page about promises lists exactly the modelled properties.

use std::{fs, path::Path};

use ringfence_model::{admission, closing, eviction, floor, ownership, parking, wakeups, wiping};

#[test]
fn promises_md_lists_each_property() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/internals/promises.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, modelled) = page
        .split_once("## What is modelled")
        .expect("the section about models");
    for property in [
        parking::READER_WOKEN,
        parking::PUBLISHER_WOKEN,
        wakeups::NO_HALF_ASLEEP,
        closing::ALL_READ,
        closing::CUT_OFF_REPORTED,
        closing::WOKEN,
        floor::NEVER_TORN,
        floor::EXACT_COUNT,
        floor::NO_FALSE_ACCUSATION,
        floor::PROGRESS,
        admission::NOT_OVERWRITTEN,
        admission::COMPLETE,
        admission::NO_FALSE_ACCUSATION,
        admission::WOKEN,
        eviction::NEVER_TORN,
        eviction::FLOOR_BELOW_HEAD,
        eviction::OWN_WORDS_ONLY,
        eviction::OWN_STALL_ONLY,
        eviction::SENDER_WOKEN,
        eviction::WOKEN,
        ownership::ONE_HOST,
        ownership::NEVER_FREE,
        ownership::PEER_IS_NAMED_HOST,
        ownership::ONE_GUEST,
        ownership::FILES_REMOVED,
        wiping::SLICE_INTACT,
        wiping::ALL_WIPED,
    ] {
        assert!(modelled.contains(property), "{property}");
    }
}
