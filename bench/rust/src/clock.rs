//! Time that two processes agree on, and time cheap enough for a round trip of 200 ns.

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: the same in every process of the machine, unlike `Instant`, which has no value.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has it");
    time.num_nanoseconds() as u64
}

/// CPU time of this thread in nanoseconds: time during which another process had the core does not count.
pub fn thread_cpu() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every kernel has it");
    time.num_nanoseconds() as u64
}

/// Ticks of the cheapest steady counter. `clock_gettime` costs a tenth of the round trip it would measure.
#[inline(always)]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // The fence keeps the counter from being read before the loads that ended the wait.
    // SAFETY: the processor has both instructions, which touch no memory.
    unsafe {
        std::arch::x86_64::_mm_lfence();
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the same, of the other processor.
    unsafe {
        let value: u64;
        std::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nomem, nostack));
        value
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    now()
}

/// Nanoseconds per tick, measured over 20 ms.
pub fn tick_length() -> f64 {
    let (time, tick) = (now(), ticks());
    while now() - time < 20_000_000 {
        std::hint::spin_loop();
    }
    (now() - time) as f64 / (ticks() - tick) as f64
}
