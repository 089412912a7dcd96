//! No side sleeps forever: the readers of one ring, and a publisher that waits for space from all of them.

use ringfence_model::{
    check,
    parking::{Barriers, Fault, PUBLISHER_WOKEN, Parking, READER_WOKEN, Sleepers},
};

/// `readers` readers of a ring that holds all `messages`.
fn readers(readers: usize, messages: u8) -> Parking {
    Parking {
        readers,
        messages,
        capacity: messages + 1,
        sleepers: Sleepers::Readers,
        barriers: Barriers::Sleeper,
        fences: 1,
        promised: 0,
        fault: None,
    }
}

/// A publisher whose ring holds one message.
fn publisher(readers: usize, messages: u8) -> Parking {
    Parking {
        capacity: 1,
        sleepers: Sleepers::Publisher,
        ..self::readers(readers, messages)
    }
}

fn holds(model: Parking) {
    let form = format!(
        "readers: {}, messages: {}, asleep: {:?}, fences: {:?}, promised: {}",
        model.readers, model.messages, model.sleepers, model.barriers, model.promised
    );
    check::holds("parking", &form, model);
}

fn finds(fault: Fault, property: &'static str, model: Parking) {
    let model = Parking {
        fault: Some(fault),
        ..model
    };
    check::finds("parking", &fault, property, model);
}

#[test]
fn sleeping_readers_are_woken_for_each_message() {
    holds(readers(1, 3));
    for promised in [0, 1, 2] {
        holds(Parking {
            promised,
            fences: 2,
            ..readers(2, 1)
        });
    }
    holds(Parking {
        barriers: Barriers::Both,
        fences: 0,
        ..readers(2, 2)
    });
}

#[test]
fn sleeping_publisher_is_woken_when_all_readers_free_space() {
    holds(publisher(2, 2));
    holds(Parking {
        barriers: Barriers::Both,
        fences: 0,
        ..publisher(2, 3)
    });
}

#[test]
fn both_sides_of_a_pair_can_sleep() {
    holds(Parking {
        sleepers: Sleepers::All,
        ..publisher(1, 2)
    });
    holds(Parking {
        sleepers: Sleepers::All,
        barriers: Barriers::Both,
        fences: 0,
        ..publisher(1, 3)
    });
}

#[test]
fn checker_finds_each_reader_fault() {
    let fenced = Parking {
        barriers: Barriers::Both,
        fences: 0,
        ..readers(1, 2)
    };
    let promised = Parking {
        promised: 2,
        fences: 2,
        ..readers(1, 1)
    };
    for (fault, model) in [
        (Fault::NoReaderFence, fenced),
        (Fault::NoReaderFence, promised),
        (Fault::NoReaderMembarrier, readers(1, 1)),
        (Fault::NoRecheckBeforeSleep, readers(1, 1)),
        (Fault::LineDrainedAfterRecheck, readers(1, 1)),
        (Fault::NoPublisherFence, fenced),
        (Fault::NoPublisherFence, promised),
        (Fault::RevokedAfterFence, readers(1, 3)),
        (Fault::PromiseStoredRelaxed, readers(1, 2)),
        (Fault::PromiseLoadedRelaxed, readers(1, 2)),
        (Fault::CheckBeforePublish, readers(1, 1)),
        (Fault::FenceCountPerReader, readers(2, 2)),
        (Fault::OneWokenNumber, readers(2, 1)),
        (Fault::ConstantParkNumber, readers(1, 2)),
    ] {
        finds(fault, READER_WOKEN, model);
    }
}

#[test]
fn checker_finds_each_publisher_fault() {
    let promised = Parking {
        promised: 2,
        fences: 2,
        ..publisher(2, 2)
    };
    let last_promised = Parking {
        promised: 1,
        ..publisher(1, 3)
    };
    for (fault, model) in [
        (Fault::PromiseOfOneReader, publisher(2, 3)),
        (Fault::RecheckOfOneReader, publisher(2, 2)),
        (Fault::NoPublisherSleepFence, promised),
        (Fault::NoFenceAfterFreeing, promised),
        (Fault::RevokedAfterFence, last_promised),
        (Fault::PromiseStoredRelaxed, publisher(1, 3)),
    ] {
        finds(fault, PUBLISHER_WOKEN, model);
    }
}

#[test]
#[ignore = "takes a minute: npm run test:models"]
fn more_readers_and_more_messages() {
    holds(readers(1, 5));
    holds(readers(2, 2));
    holds(Parking {
        fences: 2,
        ..readers(3, 1)
    });
    holds(publisher(2, 3));
    holds(Parking {
        sleepers: Sleepers::All,
        ..publisher(1, 3)
    });
}
