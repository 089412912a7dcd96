//! A subscriber's requests: the kind of delivery and the start position. Plain data, with the numbers
//! used on the wire.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// The kind of delivery that a subscriber requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Delivery {
    /// Every message, in order. The publisher waits for a subscriber that is a whole ring behind, for as long
    /// as [`Options::stall`](crate::Options::stall) allows, and then evicts it.
    #[default]
    Reliable = 1,
    /// Messages that the publisher has overwritten before the subscriber read them are skipped, and counted.
    /// Never delays the publisher.
    BestEffort = 2,
    /// Only the newest message that the subscriber has not seen. Skipped messages are counted. Never delays
    /// the publisher.
    Latest = 3,
}

impl Delivery {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reliable, Self::BestEffort, Self::Latest];

    pub(crate) const fn number(self) -> u16 {
        self as u16
    }

    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|delivery| delivery.number() == number)
    }
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reliable => "reliable",
            Self::BestEffort => "best-effort",
            Self::Latest => "latest",
        })
    }
}

impl FromStr for Delivery {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|delivery| delivery.to_string() == text)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "delivery must be 'reliable', 'best-effort' or 'latest', not {text:?}"
                ))
            })
    }
}

/// The message at which a subscriber starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StartFrom {
    /// The next message to be sent.
    #[default]
    Now = 1,
    /// The oldest message that the ring still holds.
    Oldest = 2,
    /// The last message that was sent, if the ring still holds it.
    Latest = 3,
}

impl StartFrom {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Now, Self::Oldest, Self::Latest];

    pub(crate) const fn number(self) -> u16 {
        self as u16
    }

    pub(crate) fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|from| from.number() == number)
    }
}

impl fmt::Display for StartFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now => "now",
            Self::Oldest => "oldest",
            Self::Latest => "latest",
        })
    }
}

impl FromStr for StartFrom {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|from| from.to_string() == text)
            .ok_or_else(|| Error::invalid(format!("from must be 'now', 'oldest' or 'latest', not {text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_protocol_and_the_names_those_of_the_options() {
        assert_eq!(Delivery::ALL.map(Delivery::number), [1, 2, 3]);
        assert_eq!(StartFrom::ALL.map(StartFrom::number), [1, 2, 3]);
        for delivery in Delivery::ALL {
            assert_eq!(Delivery::from_number(delivery.number()), Some(delivery));
        }
        for from in StartFrom::ALL {
            assert_eq!(StartFrom::from_number(from.number()), Some(from));
        }
        assert_eq!((Delivery::from_number(0), Delivery::from_number(4)), (None, None));
        assert_eq!(
            (StartFrom::from_number(0), StartFrom::from_number(4)),
            (None, None)
        );
        for (delivery, name) in Delivery::ALL
            .into_iter()
            .zip(["reliable", "best-effort", "latest"])
        {
            assert_eq!(delivery.to_string(), name);
            assert_eq!(name.parse::<Delivery>().unwrap(), delivery);
        }
        for (from, name) in StartFrom::ALL.into_iter().zip(["now", "oldest", "latest"]) {
            assert_eq!(from.to_string(), name);
            assert_eq!(name.parse::<StartFrom>().unwrap(), from);
        }
        assert_eq!(
            "Latest".parse::<Delivery>().unwrap_err().code(),
            "INVALID_ARGUMENT"
        );
        assert_eq!("".parse::<StartFrom>().unwrap_err().code(), "INVALID_ARGUMENT");
    }
}
