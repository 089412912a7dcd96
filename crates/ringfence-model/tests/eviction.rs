//! A reliable reader is evicted, and a new reader gets its slot.

use ringfence_model::{
    check,
    eviction::{About, BY_NUMBER, Eviction, Fault, HONEST, KEPT, RUNG, SENDER_WOKEN, WHOLE},
};

fn model(about: About, messages: u8) -> Eviction {
    Eviction {
        messages,
        old_reads: u8::from(about == About::Places),
        about,
        fault: None,
    }
}

fn holds(model: Eviction) {
    let form = format!("about: {:?}, messages: {}", model.about, model.messages);
    check::holds("eviction", &form, model);
}

#[test]
fn evicted_readers_slot_goes_to_another() {
    for about in [About::Places, About::Bells, About::Room, About::Looks] {
        holds(model(about, 3));
    }
}

#[test]
fn checker_finds_each_fault() {
    let both_read = Eviction {
        old_reads: 2,
        ..model(About::Places, 4)
    };
    check::finds(
        "eviction",
        &Fault::HeadOfTheSlot,
        KEPT,
        Eviction {
            fault: Some(Fault::HeadOfTheSlot),
            ..both_read
        },
    );
    for (fault, broken, about, messages) in [
        (Fault::HandsOutWithoutALook, WHOLE, About::Places, 3),
        (Fault::LooksWithoutFence, WHOLE, About::Places, 3),
        (Fault::FloorAfterTheWrite, WHOLE, About::Places, 3),
        (Fault::NamesTheSlot, BY_NUMBER, About::Places, 3),
        (Fault::ObjectOfTheSlot, HONEST, About::Places, 4),
        (Fault::RungOfTheSlot, RUNG, About::Bells, 4),
        (Fault::ReleasesWithoutWaking, SENDER_WOKEN, About::Room, 3),
        (Fault::WakesFirst, SENDER_WOKEN, About::Room, 3),
        (Fault::WakesOnlyASleeper, SENDER_WOKEN, About::Room, 3),
        (Fault::PositionOfNone, HONEST, About::Looks, 3),
    ] {
        let model = Eviction {
            fault: Some(fault),
            ..model(about, messages)
        };
        check::finds("eviction", &fault, broken, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn more_messages() {
    for about in [About::Places, About::Bells, About::Room, About::Looks] {
        holds(model(about, 4));
    }
}
