#![no_main]

libfuzzer_sys::fuzz_target!(
    init: ringfence::fuzzing::peer_if_asked(),
    |bytes: &[u8]| ringfence::fuzzing::host(bytes)
);
