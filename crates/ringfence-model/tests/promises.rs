//! The page about promises lists exactly the modelled properties.

use std::{fs, path::Path};

use ringfence_model::{admission, bells, closing, eviction, floor, holding, parking, wiping};

#[test]
fn each_property_is_a_sentence_of_promises_md() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/internals/promises.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, modelled) = page
        .split_once("## What is modelled")
        .expect("the section about models");
    for property in [
        parking::NO_READER,
        parking::NO_PUBLISHER,
        bells::NO_STANDSTILL,
        closing::ALL_READ,
        closing::NOT_MISTOLD,
        closing::RUNG,
        floor::NEVER_TORN,
        floor::EXACT,
        floor::NEVER_ACCUSED,
        floor::PROGRESS,
        admission::KEPT,
        admission::COMPLETE,
        admission::HONEST,
        admission::RUNG,
        eviction::WHOLE,
        eviction::KEPT,
        eviction::HONEST,
        eviction::BY_NUMBER,
        eviction::SENDER_WOKEN,
        eviction::RUNG,
        holding::ONE_HOST,
        holding::NEVER_FREE,
        holding::NAMED,
        holding::TWO,
        holding::NOTHING_LEFT,
        wiping::NOT_TOUCHED,
        wiping::ALL_WIPED,
    ] {
        assert!(modelled.contains(property), "{property}");
    }
}
