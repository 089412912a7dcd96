//! Members of an address join, leave and are killed. Each may be stopped for any time.

use ringfence_model::{
    check,
    holding::{Fault, Holding, NAMED, NEVER_FREE, NOTHING_LEFT, ONE_HOST, TWO},
};

fn holds(members: usize, deaths: u8) {
    let form = format!("members: {members}, killed: {deaths}");
    let model = Holding {
        members,
        deaths,
        fault: None,
    };
    check::holds("holding", &form, model);
}

#[test]
fn address_always_belongs_to_one_member() {
    holds(3, 1);
}

#[test]
fn checker_finds_each_fault() {
    for (fault, broken) in [
        (Fault::LocksWithoutALook, NEVER_FREE),
        (Fault::UnlocksFirst, NEVER_FREE),
        (Fault::RemovesWithoutAnAnswer, NEVER_FREE),
        (Fault::LeavesWithoutWaiting, NOTHING_LEFT),
        (Fault::LeavesBeforeItsWelcome, NEVER_FREE),
        (Fault::TakesOverOnEveryEnd, ONE_HOST),
        (Fault::PassesNoLock, NEVER_FREE),
        (Fault::GoesOnUnnamed, NAMED),
        (Fault::BelievesTheAnswer, NAMED),
        (Fault::LetsAThirdIn, TWO),
    ] {
        let model = Holding {
            members: 3,
            deaths: 1,
            fault: Some(fault),
        };
        check::finds("holding", &fault, broken, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn four_members() {
    holds(4, 1);
}
