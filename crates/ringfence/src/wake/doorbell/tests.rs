//! The line: who waits on it, who reads the bells, and how its end is noticed.

mod line;
