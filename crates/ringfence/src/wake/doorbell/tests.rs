//! The doorbell: every order in which a sleeper and a ringer may see each other, and the line itself.

mod line;
mod wake_ups;
