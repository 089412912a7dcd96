//! The rendezvous of two processes at an address, before either has identified the other.
//!
//! [`Address`] is the name. `election` decides which process binds it and which connects. `bound` is a bound
//! address, with the directory and the lock of a path, and the share of it that the guest of a membership holds.
//!
//! May import `wait`, `fork`, `sys` and the modules that the whole crate shares. It never inspects a peer,
//! and never reads or writes a frame.

pub(crate) mod bound;
pub(crate) mod election;

use std::{
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use nix::{errno::Errno, sys::socket::UnixAddr};

use crate::error::{Error, Result};

/// `sun_path` has 108 bytes (unix(7)). A path needs one of them for its terminating NUL, an abstract name for
/// its leading NUL.
const LONGEST: usize = 107;

/// The address at which processes meet: the path of a named Unix socket, or `@name` for an abstract one.
///
/// A **path** has a mode and lies in a directory, and both control which processes can connect. An
/// **abstract** name has neither: any process in the same network namespace can connect to it, or bind it
/// first. Abstract names are compared byte by byte, without padding: `@x` and `@x` followed by NULs are two
/// addresses.
///
/// The limit is 107 bytes (an abstract name without its `@`). NUL is not allowed.
///
/// ```
/// use ringfence::Address;
///
/// # fn main() -> ringfence::Result<()> {
/// let path: Address = "/run/user/1000/orders.sock".parse()?;
/// assert!(path.as_path().is_some());
/// let name: Address = "@orders".parse()?;
/// assert_eq!(name, Address::abstract_name("orders")?);
/// assert_eq!("".parse::<Address>().unwrap_err().code(), "ADDRESS_INVALID");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address(Kind);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    Path {
        /// The path as the program wrote it, for messages.
        given: PathBuf,
        /// The path that system calls use.
        at: PathBuf,
    },
    Abstract(Vec<u8>),
}

impl Address {
    /// Makes the address of a named socket.
    ///
    /// # Errors
    /// [`Error::AddressInvalid`] if the path is empty, too long, or contains a NUL.
    pub fn path(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        check(path.as_os_str().as_bytes(), &path.display().to_string(), "a path")?;
        Ok(Self(Kind::Path {
            given: path.to_owned(),
            at: path.to_owned(),
        }))
    }

    /// Makes the address of an abstract socket. `name` has no `@`.
    ///
    /// # Errors
    /// [`Error::AddressInvalid`] if the name is empty, too long, or contains a NUL.
    pub fn abstract_name(name: impl AsRef<[u8]>) -> Result<Self> {
        let name = name.as_ref();
        check(
            name,
            &format!("@{}", String::from_utf8_lossy(name)),
            "an abstract name",
        )?;
        Ok(Self(Kind::Abstract(name.to_owned())))
    }

    /// Returns the path as it was given, or `None` for an abstract name.
    pub fn as_path(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Path { given, .. } => Some(given),
            Kind::Abstract(_) => None,
        }
    }

    /// Resolves a relative path now, so that a later chdir(2) does not change it. The address is still
    /// displayed as it was given.
    ///
    /// Every call that takes an address resolves it when the call starts. A program that calls later can use
    /// this method to resolve the path now. A path whose absolute form would have more than 107 bytes stays
    /// relative. Then the process must not change its working directory while it waits for the address.
    #[must_use]
    pub fn absolute(&self) -> Self {
        match &self.0 {
            Kind::Path { given, at } if at.is_relative() => {
                let absolute = std::path::absolute(at).ok();
                let short = absolute.filter(|path| path.as_os_str().len() <= LONGEST);
                Self(Kind::Path {
                    given: given.clone(),
                    at: short.unwrap_or_else(|| at.clone()),
                })
            }
            _ => self.clone(),
        }
    }

    /// Returns the path that system calls use.
    pub(crate) fn place(&self) -> Option<&Path> {
        match &self.0 {
            Kind::Path { at, .. } => Some(at),
            Kind::Abstract(_) => None,
        }
    }

    /// The name of the bound socket, as /proc/net/unix shows it.
    pub(crate) fn bound_name(&self) -> Vec<u8> {
        match &self.0 {
            Kind::Path { at, .. } => at.as_os_str().as_bytes().to_vec(),
            Kind::Abstract(name) => [b"@", name.as_slice()].concat(),
        }
    }

    pub(crate) fn to_socket(&self) -> Result<UnixAddr> {
        match &self.0 {
            Kind::Path { at, .. } => UnixAddr::new(at.as_path()),
            Kind::Abstract(name) => UnixAddr::new_abstract(name),
        }
        .map_err(|errno| self.invalid("the kernel rejects it", Some(errno)))
    }

    /// Makes the error for a failed call at this address. A local shortage of descriptors or memory is
    /// [`Error::NoSpace`]. Every other failure means that the address is unusable.
    pub(crate) fn invalid(&self, reason: impl Into<String>, errno: Option<Errno>) -> Error {
        let reason = reason.into();
        let address = self.to_string();
        let what = format!("the address {address:?}: {reason}");
        let unusable = |errno: Option<Errno>| Error::AddressInvalid {
            address,
            reason,
            source: errno.map(Into::into),
        };
        match errno {
            Some(errno) => Error::unless_short(what, errno, |errno| unusable(Some(errno))),
            None => unusable(None),
        }
    }

    pub(crate) fn occupied(&self, by: impl Into<String>) -> Error {
        Error::occupied(self.to_string(), by)
    }
}

fn check(bytes: &[u8], shown: &str, kind: &str) -> Result<()> {
    let reason = if bytes.is_empty() {
        format!("{kind} must not be empty")
    } else if bytes.contains(&0) {
        format!("{kind} must not contain a NUL byte")
    } else if bytes.len() > LONGEST {
        format!(
            "{kind} has {} bytes, but a Unix socket's address may have {LONGEST}",
            bytes.len()
        )
    } else {
        return Ok(());
    };
    Err(Error::AddressInvalid {
        address: shown.to_owned(),
        reason,
        source: None,
    })
}

impl FromStr for Address {
    type Err = Error;

    /// Parses `@name` as an abstract name and everything else as a path. A path that starts with `@` is
    /// written `./@name`.
    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix('@') {
            Some(name) => Self::abstract_name(name),
            None => Self::path(text),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Path { given, .. } => given.display().fmt(f),
            Kind::Abstract(name) => write!(f, "@{}", String::from_utf8_lossy(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_address_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "empty"),
            ("@", "empty"),
            ("a\0b", "NUL"),
            ("@a\0b", "NUL"),
            (&*"x".repeat(108), "108 bytes"),
            (&*format!("@{}", "x".repeat(108)), "108 bytes"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert_eq!(error.code(), "ADDRESS_INVALID", "{text:?}");
            assert!(error.to_string().contains(reason), "{text:?}: {error}");
        }
    }

    #[test]
    fn longest_addresses_are_valid_and_unpadded() {
        let name = "x".repeat(107);
        assert!(name.parse::<Address>().unwrap().to_socket().is_ok());
        let socket = format!("@{name}")
            .parse::<Address>()
            .unwrap()
            .to_socket()
            .unwrap();
        assert_eq!(socket.as_abstract(), Some(name.as_bytes()));
        let short = "@x".parse::<Address>().unwrap().to_socket().unwrap();
        assert_eq!(short.as_abstract(), Some(&b"x"[..]));
    }
}
