//! A reliable reader is evicted, and a new reader gets its slot.

use ringfence_model::{
    check,
    eviction::{
        Aspect, Eviction, FLOOR_BELOW_HEAD, Fault, NEVER_TORN, OWN_STALL_ONLY, OWN_WORDS_ONLY, SENDER_WOKEN,
        WOKEN,
    },
};

fn model(aspect: Aspect, messages: u8) -> Eviction {
    Eviction {
        messages,
        old_reads: u8::from(aspect == Aspect::Slots),
        aspect,
        fault: None,
    }
}

fn holds(model: Eviction) {
    let form = format!("aspect: {:?}, messages: {}", model.aspect, model.messages);
    check::holds("eviction", &form, model);
}

#[test]
fn evicted_readers_slot_goes_to_another() {
    for aspect in [Aspect::Slots, Aspect::Wakeups, Aspect::Space, Aspect::Position] {
        holds(model(aspect, 3));
    }
}

#[test]
fn checker_finds_each_fault() {
    let both_read = Eviction {
        old_reads: 2,
        ..model(Aspect::Slots, 4)
    };
    check::finds(
        "eviction",
        &Fault::HeadPerSlot,
        FLOOR_BELOW_HEAD,
        Eviction {
            fault: Some(Fault::HeadPerSlot),
            ..both_read
        },
    );
    for (fault, property, aspect, messages) in [
        (Fault::NoFloorCheck, NEVER_TORN, Aspect::Slots, 3),
        (Fault::NoFenceBeforeFloorCheck, NEVER_TORN, Aspect::Slots, 3),
        (Fault::FloorAfterWrite, NEVER_TORN, Aspect::Slots, 3),
        (Fault::BlockerBySlot, OWN_STALL_ONLY, Aspect::Slots, 3),
        (Fault::ObjectPerSlot, OWN_WORDS_ONLY, Aspect::Slots, 4),
        (Fault::WokenNumberPerSlot, WOKEN, Aspect::Wakeups, 4),
        (Fault::EvictionWithoutWakeup, SENDER_WOKEN, Aspect::Space, 3),
        (Fault::WakeupBeforeEviction, SENDER_WOKEN, Aspect::Space, 3),
        (Fault::WakeupOnlyIfAsleep, SENDER_WOKEN, Aspect::Space, 3),
        (Fault::MissingPositionIsMax, OWN_WORDS_ONLY, Aspect::Position, 3),
    ] {
        let model = Eviction {
            fault: Some(fault),
            ..model(aspect, messages)
        };
        check::finds("eviction", &fault, property, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn more_messages() {
    for aspect in [Aspect::Slots, Aspect::Wakeups, Aspect::Space, Aspect::Position] {
        holds(model(aspect, 4));
    }
}
