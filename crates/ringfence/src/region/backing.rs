//! The kind of shared memory, which both sides of a channel choose.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// The kind of shared memory. Both sides of a channel must choose the same.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// memfd_create(2), sealed. It never has a name, and the peer can neither write, shrink nor grow it.
    #[default]
    Memfd,
    /// shm_open(3) with mode 0 under a random name that is unlinked immediately. For a moment a process of
    /// the same user can open it, and the peer could truncate it. The lease detects most processes that
    /// opened it.
    Shm,
}

impl Backing {
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Memfd => 1,
            Self::Shm => 2,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [Self::Memfd, Self::Shm]
            .into_iter()
            .find(|backing| backing.number() == number)
    }
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memfd => "memfd",
            Self::Shm => "shm",
        })
    }
}

impl FromStr for Backing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Memfd, Self::Shm]
            .into_iter()
            .find(|backing| backing.to_string() == text)
            .ok_or_else(|| Error::invalid(format!("backing must be 'memfd' or 'shm', not {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_backing_has_its_own_number_and_name() {
        let known = [(1, "memfd", Backing::Memfd), (2, "shm", Backing::Shm)];
        for (number, name, backing) in known {
            assert_eq!(backing.number(), number);
            assert_eq!(Backing::from_number(number), Some(backing));
            assert_eq!(name.parse::<Backing>().unwrap(), backing);
        }
        for number in [0, 3, u32::MAX] {
            assert_eq!(Backing::from_number(number), None);
        }
        assert_eq!("mem".parse::<Backing>().unwrap_err().code(), "INVALID_ARGUMENT");
    }
}
