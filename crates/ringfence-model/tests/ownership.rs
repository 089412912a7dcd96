//! Members of an address join, leave and are killed. Each may be stopped for any time.

use ringfence_model::{
    check,
    ownership::{FILES_REMOVED, Fault, NEVER_FREE, ONE_GUEST, ONE_HOST, Ownership, PEER_IS_NAMED_HOST},
};

fn holds(members: usize, kills: u8) {
    let form = format!("members: {members}, killed: {kills}");
    let model = Ownership {
        members,
        kills,
        fault: None,
    };
    check::holds("ownership", &form, model);
}

#[test]
fn address_always_belongs_to_one_member() {
    holds(3, 1);
}

#[test]
fn checker_finds_each_fault() {
    for (fault, property) in [
        (Fault::NoPathCheckAfterLock, NEVER_FREE),
        (Fault::UnlockBeforeRemoval, NEVER_FREE),
        (Fault::RemoveWithoutAnswer, NEVER_FREE),
        (Fault::LeaveWithoutWaiting, FILES_REMOVED),
        (Fault::LeaveBeforeRegistration, NEVER_FREE),
        (Fault::TakeOverOnEveryEnd, ONE_HOST),
        (Fault::LockNotPassed, NEVER_FREE),
        (Fault::TakeOverWithoutListen, PEER_IS_NAMED_HOST),
        (Fault::NoIdentityCheck, PEER_IS_NAMED_HOST),
        (Fault::AcceptSecondGuest, ONE_GUEST),
    ] {
        let model = Ownership {
            members: 3,
            kills: 1,
            fault: Some(fault),
        };
        check::finds("ownership", &fault, property, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn four_members() {
    holds(4, 1);
}
