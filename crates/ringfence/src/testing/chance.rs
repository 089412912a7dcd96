//! The number of random cases that a test runs.

use proptest::test_runner::Config;

/// Runs `times` as many cases as the default or `PROPTEST_CASES`. Under Miri, which is slow, at most
/// `under_miri`. A failed case is reported, but written to no file.
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
