//! The frames that are exchanged on the line during a handshake: a fixed head and a short body,
//! little-endian.
//!
//! ```text
//! head, 16 bytes     0  magic     8 bytes  "ringfnce"
//!                    8  version   u16      3
//!                   10  kind      u16      1 HELLO, 2 OFFER, 3 READY, 4 REFUSE
//!                   12  length    u32      bytes of the body that follows, at most 4096
//! HELLO, 96 bytes    0  nonce     32 bytes random, the sender's own
//!                   32  echo      32 bytes the receiver's nonce; zeros in the guest's HELLO, which comes first
//!                   64  capacity  u64      of the ring that the sender will write, a power of two
//!                   72  longest   u64      bytes of the longest message that the sender will receive
//!                   80  backing   u32      1 memfd, 2 shm
//!                   84  features  u32      bit 0: the sender takes barriers (membarrier, global expedited)
//!                                       bit 1: the sender is not dumpable from its OFFER on
//!                                       bit 4: the sender is a child, and asks for the memory of its object
//!                   88  meeting   u32      0 a pair's (join), 1 a service's (listen, connect), 2 a family's (spawn),
//!                                       3 a membership's (member), 4 a publisher's (publish, subscribe); the
//!                                       same on both sides
//!                   92  delivery  u16      what a subscriber asks for: 1 reliable, 2 best-effort, 3 latest; else 0
//!                   94  from      u16      where it begins: 1 now, 2 oldest, 3 latest; else 0
//! OFFER, 104 bytes   0  echo      32 bytes the receiver's nonce
//!                   32  size      u64      of the object, in bytes; the object comes with it (SCM_RIGHTS)
//!                   40  capacity  u64      as in HELLO
//!                   48  number    u32      of the realtime signal that brings the sender tokens; 0: none does
//!                   52  thread    u32      the thread to send it to
//!                   56  mailbox   u32      to be sent with it
//!                   60  reserved  u32      0
//!                   64  secret    16 bytes random, to be sent with it
//!                   80  position  u64      of a publisher: where in its ring the subscriber begins; else 0
//!                   88  sequence  u64      how many messages were sent before that; else 0
//!                   96  slot      u32      the subscriber's number; else 0
//!                  100  reserved  u32      0
//! READY, 32 bytes    0  echo      32 bytes the receiver's nonce
//! REFUSE             0  code      u16      see `Code`
//!                    2  three texts: check, wanted, found; each a u16 length and as many bytes of UTF-8
//! ```
//!
//! Every frame carries the credentials of its sender (`SCM_CREDENTIALS`). Three kinds of frame carry
//! descriptors:
//!
//! - the guest's HELLO: the other end of the private line;
//! - OFFER: the object; from a publisher the control object and the ring;
//! - in a membership, the host's READY: the listening socket and, for a path, the lock next to it.

use bytemuck::{Pod, Zeroable, bytes_of, pod_read_unaligned, try_pod_read_unaligned};

use crate::{
    error::{Error, Refusal, Result, cut, steers},
    signal::inbox::TokenAddress,
    wake::attachments::{Attachments, MAX_UNREAD},
};

const MAGIC: [u8; 8] = *b"ringfnce";

/// The head of each frame.
#[repr(C)]
#[derive(Clone, Copy)]
struct FrameHead {
    magic: [u8; 8],
    version: u16,
    kind: u16,
    length: u32,
}

// SAFETY: its fields are plain data, and their 16 bytes leave no padding between them.
unsafe impl Zeroable for FrameHead {}
// SAFETY: as above.
unsafe impl Pod for FrameHead {}

/// The version of this protocol and of the memory layout. Both sides must have the same version.
pub(crate) const VERSION: u16 = 3;
pub(super) const HEAD: usize = size_of::<FrameHead>();
const MAX_BODY: usize = 4096;
/// Bytes of a text of a refusal. It is for people, and a thousand are enough.
const MAX_TEXT: usize = 1000;

pub(crate) type Nonce = [u8; 32];

/// `frame` is the name of the frame with the echo, for the error.
pub(super) fn check_echo(frame: &str, found: &Nonce, own: &Nonce) -> Result<()> {
    if found == own {
        Ok(())
    } else {
        Err(Error::Protocol(format!(
            "{frame} with a wrong echo of this side's nonce"
        )))
    }
}

/// The bodies of a HELLO and an OFFER are plain data: the crate is for little-endian processors.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hello {
    pub(crate) nonce: Nonce,
    pub(crate) echo: Nonce,
    pub(crate) capacity: u64,
    pub(crate) longest: u64,
    pub(crate) backing: u32,
    pub(crate) features: u32,
    pub(crate) meeting: u32,
    /// The numbers of a subscriber's delivery and starting point.
    pub(crate) delivery: u16,
    pub(crate) from: u16,
    /// The limits of the attachments that the sender accepts; the features say which kinds.
    pub(crate) max_attachments: u32,
    pub(crate) reserved: u32,
    pub(crate) max_attached_bytes: u64,
}

// SAFETY: its fields are plain data, and their 112 bytes leave no padding between them.
unsafe impl Zeroable for Hello {}
// SAFETY: as above.
unsafe impl Pod for Hello {}
const _: () = assert!(size_of::<Hello>() == 112);

impl Hello {
    /// Returns the attachments that the sender of this HELLO accepts.
    pub(crate) fn attachments(&self) -> Attachments {
        Attachments::none()
            .sealed(self.features & ACCEPTS_SEALED != 0)
            .descriptors(self.features & ACCEPTS_DESCRIPTORS != 0)
            .max_count(self.max_attachments.min(MAX_UNREAD))
            .max_bytes(self.max_attached_bytes)
    }
}

/// Bit 0 of a HELLO's features.
pub(crate) const BARRIERS: u32 = 1;
/// Bit 1: the sender is hardened against other processes of its user before it sends its OFFER.
pub(crate) const HARDENS: u32 = 2;
/// Bit 2: the sender accepts sealed buffers.
pub(crate) const ACCEPTS_SEALED: u32 = 4;
/// Bit 3: the sender accepts descriptors.
pub(crate) const ACCEPTS_DESCRIPTORS: u32 = 8;
/// Bit 4: the sender is a child that may not create memory, and asks its parent for that of its object.
pub(crate) const LACKS_MEMORY: u32 = 16;

listed! { pub(crate),
    /// The kind of connection that two processes want to make. A process that wants another kind has the wrong
    /// address.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Meeting {
        /// `join`.
        Pair = 0,
        /// `listen` and `connect`.
        Service = 1,
        /// `spawn` and `from_parent`.
        Family = 2,
        /// `member`.
        Membership = 3,
        /// `publish` and `subscribe`.
        Broadcast = 4,
    }
}

numbered! { Meeting as u32 }

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) echo: Nonce,
    pub(crate) size: u64,
    pub(crate) capacity: u64,
    pub(crate) tokens: TokenAddress,
    /// Set by a publisher.
    pub(crate) start: Start,
}

// SAFETY: its fields are plain data, and their 104 bytes leave no padding between or in them.
unsafe impl Zeroable for Offer {}
// SAFETY: as above.
unsafe impl Pod for Offer {}
const _: () = assert!(size_of::<Offer>() == 104);

/// The starting position of a subscriber in its publisher's ring, and its number there.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Start {
    pub(crate) position: u64,
    /// The number of messages sent before that position.
    pub(crate) sequence: u64,
    pub(crate) slot: u32,
    pub(crate) reserved: u32,
}

listed! { pub(crate),
    /// The reason for which one side refuses the other.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Code {
        /// Two processes share the address already.
        Occupied = 1,
        /// The peer does not satisfy the policy.
        Peer = 2,
        /// A frame violates the protocol, or the options of both sides differ.
        Protocol = 3,
        /// The object is not acceptable.
        Object = 4,
        /// The sender cannot continue, for a local reason.
        Unable = 5,
    }
}

numbered! { Code as u16 }

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refuse {
    pub(crate) code: Code,
    pub(crate) check: String,
    pub(crate) wanted: String,
    pub(crate) found: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    Hello(Hello),
    Offer(Offer),
    Ready(Nonce),
    Refuse(Refuse),
}

impl Frame {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Hello(hello) => (1, bytes_of(hello).to_vec()),
            Self::Offer(offer) => (2, bytes_of(offer).to_vec()),
            Self::Ready(echo) => (3, echo.to_vec()),
            Self::Refuse(refuse) => {
                let mut body = refuse.code.number().to_le_bytes().to_vec();
                for text in [&refuse.check, &refuse.wanted, &refuse.found] {
                    let text = cut(text, MAX_TEXT);
                    body.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_le_bytes());
                    body.extend_from_slice(text.as_bytes());
                }
                (4, body)
            }
        };
        let head = FrameHead {
            magic: MAGIC,
            version: VERSION,
            kind,
            length: u32::try_from(body.len()).expect("bodies are short"),
        };
        [bytes_of(&head), &body].concat()
    }

    /// Decodes the kind and the body's length from a frame's head.
    pub(super) fn head(head: &[u8; HEAD]) -> Result<(u16, usize)> {
        let FrameHead {
            magic,
            version,
            kind,
            length,
        } = pod_read_unaligned(head);
        if magic != MAGIC {
            return Err(Error::Protocol(format!(
                "a frame begins with {magic:02x?} instead of {MAGIC:02x?}"
            )));
        }
        if version != VERSION {
            return Err(Error::Protocol(format!(
                "it speaks version {version}, and this is version {VERSION}"
            )));
        }
        let length = length as usize;
        let wanted = match kind {
            1 => size_of::<Hello>()..=size_of::<Hello>(),
            2 => size_of::<Offer>()..=size_of::<Offer>(),
            3 => size_of::<Nonce>()..=size_of::<Nonce>(),
            4 => 8..=MAX_BODY,
            _ => return Err(Error::Protocol(format!("a frame of the unknown kind {kind}"))),
        };
        if !wanted.contains(&length) {
            return Err(Error::Protocol(format!(
                "a frame of kind {kind} with {length} bytes instead of {wanted:?}"
            )));
        }
        Ok((kind, length))
    }

    /// Decodes a body that has the length of its head.
    pub(super) fn body(kind: u16, body: &[u8]) -> Result<Self> {
        Ok(match kind {
            1 => Self::Hello(plain(body)?),
            2 => Self::Offer(plain(body)?),
            3 => Self::Ready(plain(body)?),
            _ => {
                let mut fields = Fields(body);
                let number = fields.u16()?;
                let unknown = || Error::Protocol(format!("a refusal with the unknown code {number}"));
                let refuse = Refuse {
                    code: Code::from_number(number).ok_or_else(unknown)?,
                    check: fields.text()?,
                    wanted: fields.text()?,
                    found: fields.text()?,
                };
                if !fields.0.is_empty() {
                    let surplus = fields.0.len();
                    return Err(Error::Protocol(format!(
                        "{surplus} bytes too many in a frame of kind {kind}"
                    )));
                }
                Self::Refuse(refuse)
            }
        })
    }
}

#[cfg(any(test, fuzzing))]
impl Frame {
    /// Decodes the first frame, as [`FrameLine::next_frame`](crate::handshake::line::FrameLine::next_frame) reads it. Returns
    /// the remaining bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let short = || Error::Protocol("a frame ends early".into());
        let (head, rest) = bytes.split_first_chunk().ok_or_else(short)?;
        let (kind, length) = Self::head(head)?;
        let (body, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        Ok((Self::body(kind, body)?, rest))
    }
}

/// Reads a body that is plain data.
fn plain<T: Pod>(body: &[u8]) -> Result<T> {
    try_pod_read_unaligned(body).map_err(|_| Error::Protocol("a frame ends early or late".into()))
}

/// The fields of a refusal that are not read yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u16(&mut self) -> Result<u16> {
        let field = self.0.split_off(..2);
        let field = field.ok_or_else(|| Error::Protocol("a frame ends early".into()))?;
        Ok(u16::from_le_bytes([field[0], field[1]]))
    }

    fn text(&mut self) -> Result<String> {
        let length = usize::from(self.u16()?);
        let text = self.0.split_off(..length);
        let text = text.ok_or_else(|| Error::Protocol("a text ends early".into()))?;
        // The text may be shown on a terminal, so it must not contain control characters.
        Ok(String::from_utf8_lossy(text)
            .chars()
            .map(|c| if steers(c) { '\u{fffd}' } else { c })
            .collect())
    }
}

/// Converts a local error into the refusal that the peer receives.
impl From<&Error> for Refuse {
    fn from(error: &Error) -> Self {
        let (code, check, wanted, found) = match error {
            Error::PeerRefused(refusal) => {
                // Another user learns which check failed, but neither the required nor the found value.
                let is_same_user = refusal
                    .identity
                    .as_ref()
                    .is_some_and(|peer| peer.uid == nix::unistd::geteuid().as_raw());
                let visible = |text: &String| if is_same_user { text.clone() } else { String::new() };
                let (wanted, found) = (visible(&refusal.wanted), visible(&refusal.found));
                (Code::Peer, refusal.check.as_str(), wanted, found)
            }
            Error::AddressOccupied { by, .. } => (Code::Occupied, "address", String::new(), by.clone()),
            Error::Protocol(what) => (Code::Protocol, "protocol", String::new(), what.clone()),
            Error::ObjectUnsound { check, wanted, found } => {
                (Code::Object, *check, wanted.clone(), found.clone())
            }
            _ => (
                Code::Unable,
                error.code(),
                "to continue".into(),
                error.to_string(),
            ),
        };
        Self {
            code,
            check: check.into(),
            wanted,
            found,
        }
    }
}

impl Refuse {
    /// Whether the next attempt may succeed: the sender is about to end, or its handshake timed out. The
    /// caller gets all other errors.
    pub(crate) fn is_transient(&self) -> bool {
        self.code == Code::Unable && ["CLOSED", "HANDSHAKE_TIMEOUT"].contains(&&*self.check)
    }

    /// Returns whether a publisher has evicted the subscriber that it refuses.
    pub(super) fn is_eviction(&self) -> bool {
        self.code == Code::Unable && self.check == Error::Evicted.code()
    }

    /// Converts the peer's refusal into this side's error.
    pub(crate) fn into_error(self, address: &str) -> Error {
        match self.code {
            Code::Occupied => Error::occupied(address, self.found),
            Code::Peer => Refusal::by_peer(self.check, self.wanted, self.found).into(),
            Code::Protocol => Error::Protocol(format!("the peer reports: {}", self.found)),
            Code::Object => Error::PeerLost(format!(
                "it refused this side's object: its {} should be {} and is {}",
                self.check, self.wanted, self.found
            )),
            Code::Unable => Error::PeerLost(format!("it could not continue: {}", self.found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Check, signal::inbox::Secret};

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Hello(Hello {
                nonce: [1; 32],
                echo: [2; 32],
                capacity: 4096,
                longest: 1 << 40,
                backing: 2,
                features: 1,
                meeting: 4,
                delivery: 3,
                from: 2,
                max_attachments: 7,
                reserved: 0,
                max_attached_bytes: 1 << 41,
            }),
            Frame::Offer(Offer {
                echo: [3; 32],
                size: 12288,
                capacity: 4096,
                tokens: TokenAddress {
                    number: 50,
                    thread: 4711,
                    mailbox: 1,
                    reserved: 0,
                    secret: Secret([5; 16]),
                },
                start: Start {
                    position: 4104,
                    sequence: 1 << 33,
                    slot: 7,
                    reserved: 0,
                },
            }),
            Frame::Ready([4; 32]),
            Frame::Refuse(Refuse {
                code: Code::Peer,
                check: "uid".into(),
                wanted: "1".into(),
                found: "2".into(),
            }),
        ]
    }

    fn decode(bytes: &[u8]) -> Result<Frame> {
        Frame::decode(bytes).map(|(frame, _)| frame)
    }

    #[test]
    fn frame_encoding_round_trips() {
        for frame in frames() {
            assert_eq!(decode(&frame.encode()).unwrap(), frame);
        }
    }

    #[test]
    fn wrong_magic_version_kind_or_length_is_named() {
        for (at, what) in [
            (0, "begins with"),
            (8, "version"),
            (10, "kind"),
            (12, "bytes instead of"),
        ] {
            let mut bytes = frames()[0].encode();
            bytes[at] ^= 0x55;
            let error = decode(&bytes).unwrap_err();
            assert_eq!(error.code(), "PROTOCOL");
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn decoding_never_panics() {
        let mut state = 1_u64;
        for frame in frames() {
            let good = frame.encode();
            for round in 0..2000 {
                let mut bytes = good.clone();
                for _ in 0..=round % 4 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let at = (state >> 33) as usize % bytes.len();
                    bytes[at] = state.to_le_bytes()[3];
                }
                let _ = decode(&bytes[..(state >> 40) as usize % (bytes.len() + 1)]);
                let _ = decode(&bytes);
            }
        }
    }

    #[test]
    fn long_refusal_is_truncated_between_characters() {
        let frame = Frame::Refuse(Refuse {
            code: Code::Unable,
            check: "x".into(),
            wanted: "ü".repeat(2000),
            found: "€".repeat(2000),
        });
        let Frame::Refuse(back) = decode(&frame.encode()).unwrap() else {
            panic!("a refusal")
        };
        assert_eq!(back.wanted, "ü".repeat(500));
        assert_eq!(back.found, "€".repeat(333));
    }

    #[test]
    fn numbers_match_the_protocol_and_others_are_unknown() {
        let meetings = [
            Meeting::Pair,
            Meeting::Service,
            Meeting::Family,
            Meeting::Membership,
            Meeting::Broadcast,
        ];
        for (number, meeting) in (0..).zip(meetings) {
            assert_eq!(
                (meeting.number(), Meeting::from_number(number)),
                (number, Some(meeting))
            );
        }
        assert_eq!(Meeting::from_number(5), None);
        assert_eq!(Code::ALL.map(Code::number), [1, 2, 3, 4, 5]);
        assert_eq!(
            [BARRIERS, HARDENS, ACCEPTS_SEALED, ACCEPTS_DESCRIPTORS],
            [1, 2, 4, 8]
        );
    }

    #[test]
    fn encoded_bytes_match_the_protocol() {
        let ready = [&b"ringfnce\x03\0\x03\0\x20\0\0\0"[..], &[4; 32]].concat();
        assert_eq!(Frame::Ready([4; 32]).encode(), ready);
        let refuse = b"ringfnce\x03\0\x04\0\x0d\0\0\0\x02\0\x03\0uid\x01\x001\x01\x002";
        assert_eq!(frames()[3].encode(), refuse);
        let lengths: Vec<_> = frames().iter().map(|frame| frame.encode().len()).collect();
        assert_eq!(lengths, [16 + 112, 16 + 104, 16 + 32, 16 + 13]);
    }

    #[test]
    fn body_length_must_match_its_kind() {
        for (kind, length, sound) in [
            (1, 112, true),
            (1, 111, false),
            (1, 113, false),
            (2, 104, true),
            (2, 112, false),
            (3, 32, true),
            (3, 33, false),
            (4, 7, false),
            (4, 8, true),
            (4, 4096, true),
            (4, 4097, false),
            (0, 32, false),
            (5, 32, false),
        ] {
            let mut head = *b"ringfnce\x03\0kklen.";
            head[10..12].copy_from_slice(&u16::to_le_bytes(kind));
            head[12..].copy_from_slice(&u32::to_le_bytes(length));
            let found = Frame::head(&head);
            assert_eq!(found.is_ok(), sound, "{kind} with {length}: {found:?}");
            assert!(!sound || found.unwrap() == (kind, length as usize));
        }
        for frame in frames() {
            let bytes = frame.encode();
            let kind = u16::from(bytes[10]);
            let body = &bytes[HEAD..];
            assert_eq!(Frame::body(kind, body).unwrap(), frame);
            let longer = [body, &[0]].concat();
            for wrong in [&body[..body.len() - 1], &longer] {
                assert_eq!(Frame::body(kind, wrong).unwrap_err().code(), "PROTOCOL");
            }
        }
        let unknown = [6, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Frame::body(4, &unknown).unwrap_err().code(), "PROTOCOL");
    }

    #[test]
    fn echo_must_equal_our_nonce() {
        check_echo("a HELLO", &[7; 32], &[7; 32]).unwrap();
        let error = check_echo("a HELLO", &[7; 32], &[8; 32]).unwrap_err();
        assert_eq!(error.code(), "PROTOCOL");
        assert!(error.to_string().contains("a HELLO with a wrong echo"), "{error}");
    }

    #[test]
    fn control_characters_in_peer_text_are_replaced() {
        let Frame::Refuse(mut refuse) = frames().remove(3) else {
            panic!("a refusal")
        };
        refuse.found = "a\u{1b}[2J\nb".into();
        let Ok(Frame::Refuse(back)) = decode(&Frame::Refuse(refuse).encode()) else {
            panic!("a refusal")
        };
        assert_eq!(back.found, "a\u{fffd}[2J\u{fffd}b");
    }

    /// A peer of another user learns less than one of our own user.
    #[test]
    fn refused_peer_learns_details_only_with_our_uid() {
        let refusal = |uid| {
            let who = crate::identity::Credentials { pid: 1, uid, gid: 0 };
            Error::from(Refusal::new(Check::Cgroup, "a", "b").about(who))
        };
        let own = nix::unistd::geteuid().as_raw();
        for (uid, wanted, found) in [(own, "a", "b"), (own + 1, "", "")] {
            let reported = Refuse::from(&refusal(uid));
            assert_eq!((reported.code, &*reported.check), (Code::Peer, "cgroup"));
            assert_eq!((&*reported.wanted, &*reported.found), (wanted, found), "of {uid}");
        }
        let nobody = Refuse::from(&Error::from(Refusal::new(Check::Cgroup, "a", "b")));
        assert_eq!((&*nobody.wanted, &*nobody.found), ("", ""));
    }

    #[test]
    fn each_refusal_maps_to_its_own_error() {
        let unsound = Error::unsound("size", "1", "2");
        let occupied = Error::AddressOccupied {
            address: "@here".into(),
            by: "two".into(),
        };
        let late = Error::HandshakeTimeout {
            step: "HELLO",
            after: std::time::Duration::ZERO,
        };
        let none = Error::no_space("room", "none");
        for (error, code, passing, there) in [
            (occupied, Code::Occupied, false, "ADDRESS_OCCUPIED"),
            (
                Refusal::new(Check::Uid, "1", "2").into(),
                Code::Peer,
                false,
                "PEER_REFUSED",
            ),
            (Error::Protocol("x".into()), Code::Protocol, false, "PROTOCOL"),
            (unsound, Code::Object, false, "PEER_LOST"),
            (Error::Closed("x"), Code::Unable, true, "PEER_LOST"),
            (late, Code::Unable, true, "PEER_LOST"),
            (none, Code::Unable, false, "PEER_LOST"),
        ] {
            let refuse = Refuse::from(&error);
            assert_eq!((refuse.code, refuse.is_transient()), (code, passing), "{error}");
            let Ok(Frame::Refuse(back)) = decode(&Frame::Refuse(refuse.clone()).encode()) else {
                panic!("a refusal")
            };
            assert_eq!(back, refuse);
            assert_eq!(back.into_error("@here").code(), there, "{error}");
        }
        let passing = Refuse {
            code: Code::Protocol,
            check: "CLOSED".into(),
            wanted: String::new(),
            found: String::new(),
        };
        assert!(!passing.is_transient());
    }
}
