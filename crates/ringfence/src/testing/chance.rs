//! How much of what chance makes up a test tries.

use proptest::test_runner::Config;

/// As many cases as ever, or as `PROPTEST_CASES` says, so many times; under Miri, which is slow, no more than so few. A case that
/// has failed is told, and written to no file.
pub(crate) fn cases(times: u32, under_miri: u32) -> Config {
    let mut config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    config.cases = if cfg!(miri) {
        config.cases.min(under_miri)
    } else {
        config.cases * times
    };
    config
}
