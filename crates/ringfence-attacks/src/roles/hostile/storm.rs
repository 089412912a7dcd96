//! Malformed data, written without end into a ring while the peer reads it. A seed decides which data, and
//! when.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{mapping::Mapping, protocol::layout};

/// Writes random false values, as fast as it can, at places and with values that a reader would accept at
/// first sight.
///
/// In between it writes correct data, so that the reader continues, and respects the room that the reader
/// makes. It writes whole and fragmented messages whose words change while they can be read, and mostly
/// change back.
pub(super) fn storm(map: &Mapping, theirs: &Mapping, seed: u64, stop: &AtomicBool) {
    let mut writer = Writer::new(map, seed);
    // One message in `rate` is falsified.
    let rate = [2, 16, 128, 1024][usize::try_from(seed % 4).unwrap_or(0)];
    // Some storms change only the sizes of fragmented messages. A reader reads a size twice: once to
    // allocate, and once to fill.
    let sizes = seed.is_multiple_of(5);
    while !stop.load(Ordering::Relaxed) {
        // The next messages take at most 600 bytes, without padding.
        if writer.tail + 1200 > theirs.load(layout::HEAD) + writer.capacity {
            continue;
        }
        let rest = writer.pad(600);
        let begin = writer.tail;
        let (one, two) = (writer.random.below(200), 1 + writer.random.below(200));
        let words = if writer.random.below(4) > 0 && !sizes {
            vec![writer.write_whole(one)]
        } else {
            let [first, size, last] = writer.write_fragments(one, two);
            if sizes {
                vec![size]
            } else {
                vec![first, size, last]
            }
        };
        map.store(layout::TAIL, writer.tail);
        if writer.random.below(rate) == 0 || sizes {
            let word = writer.random.one_of(&words);
            writer.falsify(word, word.0 == begin + 8, rest);
        }
        writer.falsify_control_words(rate * 16_384);
    }
}

/// Publishes as an honest publisher that waits for no subscriber, and writes false values in between. It
/// changes headers, tail, floor and marks, for a moment or permanently.
pub(super) fn fan_storm(map: &Mapping, seed: u64, stop: &AtomicBool) {
    let mut writer = Writer::new(map, seed);
    let capacity = writer.capacity;
    let rate = [4, 64, 1024, 65_536][usize::try_from(seed % 4).unwrap_or(0)];
    let (mut floor, mut sent, mut marks, mut marked) = (0_u64, 0_u64, 0_usize, 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let length = writer.random.below(120);
        writer.pad(200);
        if writer.tail >= marked || marks == 0 {
            let place = layout::mark_of(marks);
            map.store(place + 8, sent);
            map.store(place, writer.tail);
            (marks, marked) = (marks + 1, writer.tail + capacity / 16);
        }
        if writer.tail + 200 > floor + capacity {
            floor = (writer.tail + 200 - capacity / 2).min(writer.tail);
            map.store(layout::FLOOR, floor);
        }
        let (begin, header) = writer.write_whole(length);
        let tail = writer.tail;
        sent += 1;
        map.store(layout::TAIL, tail);
        let random = &mut writer.random;
        if random.below(rate) == 0 {
            let far = [
                tail + 8,
                0,
                u64::MAX,
                tail + capacity,
                random.below(1 << 62),
                tail ^ 8,
            ];
            let false_value = random.one_of(&far);
            let (place, true_value) = match random.below(5) {
                0 => (layout::TAIL, tail),
                1 => (layout::FLOOR, floor),
                2 => (layout::mark_of(marks), 0),
                3 => (layout::mark_of(marks) + 8, 0),
                _ => (writer.at(begin), header),
            };
            let times = 1 + writer.random.below(20);
            writer.alternate(place, false_value, true_value, times);
        }
        map.store(layout::WRITER_PARKED, writer.random.below(3));
    }
}

/// A writer that follows the protocol, except where it writes false values.
struct Writer<'a> {
    map: &'a Mapping,
    capacity: u64,
    random: Random,
    /// Position of its next record.
    tail: u64,
}

/// The position of a word in the ring, and the word that an honest writer would store there.
type Word = (u64, u64);

impl<'a> Writer<'a> {
    fn new(map: &'a Mapping, seed: u64) -> Self {
        Self {
            map,
            capacity: map.load(8),
            random: Random(seed | 1),
            tail: 0,
        }
    }

    /// Offset of a position in the region.
    fn at(&self, position: u64) -> usize {
        layout::DATA + usize::try_from(position % self.capacity).unwrap_or(0)
    }

    /// Pads to the end of the ring if fewer than `room` bytes remain there. Returns how many remained.
    fn pad(&mut self, room: u64) -> u64 {
        let rest = self.capacity - self.tail % self.capacity;
        if rest < room {
            self.map
                .store(self.at(self.tail), header(rest - 8, layout::PADDING));
            self.tail += rest;
        }
        rest
    }

    /// Writes a message in one record, and returns its header.
    fn write_whole(&mut self, length: u64) -> Word {
        let word = (self.tail, header(length, layout::FIRST | layout::LAST));
        self.map.store(self.at(word.0), word.1);
        self.tail += record(length);
        word
    }

    /// Writes a message of `one + two + 1` bytes in two records. Returns the first header, the message's size
    /// after it, and the last header.
    fn write_fragments(&mut self, one: u64, two: u64) -> [Word; 3] {
        let (first, last) = (self.tail, self.tail + record(9 + one));
        let words = [
            (first, header(9 + one, layout::FIRST)),
            (first + 8, 1 + one + two),
            (last, header(two, layout::LAST)),
        ];
        for (position, word) in words {
            self.map.store(self.at(position), word);
        }
        self.tail = last + record(two);
        // The reader may have to wait for the second record.
        if self.random.below(2) == 0 {
            self.map.store(layout::TAIL, last);
        }
        words
    }

    /// Replaces a header or a size by a false one for a few moments. `rest` is the room that remained at the
    /// end of the ring.
    fn falsify(&mut self, (position, true_value): Word, is_size: bool, rest: u64) {
        let random = &mut self.random;
        let whole = layout::FIRST | layout::LAST;
        let flags = random.one_of(&[
            whole,
            whole,
            layout::FIRST,
            layout::LAST,
            0,
            layout::PADDING,
            8,
            3,
        ]);
        let length = match random.below(8) {
            0 => u64::from(u32::MAX),
            1 => self.capacity - 8,
            2 => 0,
            3 => rest.saturating_sub(8),
            _ => random.below(600),
        };
        // A larger message size that a reader would still accept.
        let false_value = if is_size {
            random.below(1 << 20)
        } else {
            header(length, flags)
        };
        let times = random.below(50);
        self.alternate(self.at(position), false_value, true_value, times);
    }

    /// Falsifies the tail for a moment and the head, each once in `seldom` calls, and the parking words in
    /// every call.
    fn falsify_control_words(&mut self, seldom: u64) {
        let Self {
            map, random, tail, ..
        } = self;
        if random.below(seldom) == 0 {
            map.store(layout::TAIL, *tail ^ (1 << random.below(64)));
            map.store(layout::TAIL, *tail);
        }
        if random.below(seldom) == 0 {
            map.store(layout::HEAD, random.below(1 << 20));
        }
        map.store(layout::READER_PARKED, random.below(3));
        map.store(layout::WRITER_PARKED, random.below(3));
    }

    fn alternate(&self, at: usize, false_value: u64, true_value: u64, times: u64) {
        for _ in 0..times {
            self.map.store(at, false_value);
            self.map.store(at, true_value);
        }
    }
}

/// A xorshift generator: the same seed makes the same storm.
struct Random(u64);

impl Random {
    fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::try_from(self.below(all.len() as u64)).unwrap_or(0)]
    }
}

/// Returns the header of a record.
pub(super) fn header(length: u64, flags: u32) -> u64 {
    length | u64::from(flags) << 32
}

/// Returns the bytes that a record takes.
fn record(length: u64) -> u64 {
    8 + length.next_multiple_of(8)
}
