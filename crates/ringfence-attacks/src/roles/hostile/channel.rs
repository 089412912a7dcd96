//! Attacks on an open channel, as orders to a malicious peer.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use nix::{
    fcntl::{AtFlags, FallocateFlags, FcntlArg, OFlag, SealFlag, fallocate, fcntl, open},
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::{MsgFlags, send},
        stat::{Mode, fchmod, fstat},
        uio::pwrite,
    },
    unistd::{ftruncate, linkat, pipe2},
};

use super::{
    HostilePeer, failed, number, outcome,
    storm::{fan_storm, header, storm},
};
use crate::{mapping::Mapping, protocol::layout, socket};

impl HostilePeer {
    /// Executes an order to do something to the channel, to its own memory or to the peer's, that no honest peer
    /// does.
    pub(super) fn attack(&mut self, order: &[&str]) -> Result<String, String> {
        let own = || self.own.as_ref().ok_or("no own object");
        let own_map = || self.own_map.as_ref().ok_or("no own memory");
        let theirs = || self.theirs.as_ref().ok_or("no object of the peer");
        Ok(match order {
            ["store", at, value] => {
                own_map()?.store(number(at)?, number(value)?);
                "stored".into()
            }
            ["load", at] => own_map()?.load(number(at)?).to_string(),
            ["write", at, text] => {
                own_map()?.write(number(at)?, text.as_bytes());
                "written".into()
            }
            // One whole message behind those before it.
            ["message", text] => {
                append(own_map()?, layout::FIRST | layout::LAST, text.as_bytes());
                self.wake()
            }
            // A frame of a call.
            ["frame", kind, call, body @ ..] => {
                let mut frame = number::<u32>(kind)?.to_le_bytes().to_vec();
                frame.extend([0; 4]);
                frame.extend(number::<u64>(call)?.to_le_bytes());
                frame.extend(body.concat().as_bytes());
                append(own_map()?, layout::FIRST | layout::LAST | layout::CALL, &frame);
                self.wake()
            }
            // Fills the ring with whole messages of `length` bytes (a multiple of eight).
            ["fill", length] => fill(own_map()?, self.capacity, number(length)?)?,
            ["wake"] => self.wake(),
            ["store-control", at, value] => {
                let control = self.control.as_ref().ok_or("no own control object")?;
                control.store(number(at)?, number(value)?);
                "stored".into()
            }
            ["fan-storm", seed] => {
                let (map, seed) = (Arc::clone(own_map()?), number(seed)?);
                self.begin(move |over| fan_storm(&map, seed, over))
            }
            ["blocks"] => (fstat(own()?).map_err(failed("fstat"))?.st_blocks * 512).to_string(),
            ["shrink-own"] => outcome(ftruncate(own()?, 0), "shrunk"),
            ["disconnect"] => {
                self.line = None;
                self.kept = None;
                self.stream = None;
                "disconnected".into()
            }
            ["flip", at, count] => {
                let (map, at) = (own_map()?, number::<usize>(at)?);
                let flipped: Vec<u8> = map.read(at, number(count)?).iter().map(|byte| byte ^ 1).collect();
                map.write(at, &flipped);
                "flipped".into()
            }
            ["storm", seed] => {
                let (map, seed) = (Arc::clone(own_map()?), number(seed)?);
                let their_words = Mapping::new(theirs()?, layout::DATA, false).map_err(failed("mmap"))?;
                self.begin(move |over| storm(&map, &their_words, seed, over))
            }
            ["stop-storm"] => {
                let (stop, thread) = self.storm.take().ok_or("no storm")?;
                stop.store(true, Ordering::Relaxed);
                thread.join().map_err(|_| "the storm ended badly")?;
                "storm stopped".into()
            }
            other => return self.attack_peer_object(other),
        })
    }

    /// Runs a storm on its own thread, until it is ordered to stop.
    fn begin(&mut self, storm: impl FnOnce(&AtomicBool) + Send + 'static) -> String {
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        self.storm = Some((stop, thread::spawn(move || storm(&over))));
        "storming".into()
    }

    /// Attacks the memory that the peer owns.
    fn attack_peer_object(&self, order: &[&str]) -> Result<String, String> {
        let theirs = || self.theirs.as_ref().ok_or("no object of the peer");
        let their_size = usize::try_from(self.their_size).map_err(|error| error.to_string())?;
        Ok(match order {
            ["shrink-theirs"] => outcome(ftruncate(theirs()?, 0), "shrunk"),
            ["grow-theirs"] => outcome(ftruncate(theirs()?, i64::MAX >> 20), "grown"),
            ["punch-theirs"] => {
                let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                outcome(fallocate(theirs()?, flags, 0, 4096), "punched")
            }
            ["write-theirs"] => outcome(pwrite(theirs()?, &[0xff; 8], 0), "written"),
            ["map-theirs"] => outcome(Mapping::new(theirs()?, their_size, true), "mapped"),
            ["reopen-theirs"] => {
                // A new open file of the same object, so that the access mode of the passed descriptor does
                // not matter.
                let path = format!("/proc/self/fd/{}", theirs()?.as_raw_fd());
                let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
                match open(path.as_str(), flags, Mode::empty()) {
                    Ok(again) => outcome(Mapping::new(again, their_size, true), "mapped"),
                    Err(errno) => format!("{errno:?}"),
                }
            }
            // The owner of an object may change its mode, whatever it is now.
            ["expose-theirs"] => {
                let path = format!("/proc/self/fd/{}", theirs()?.as_raw_fd());
                let opened = fchmod(theirs()?, Mode::S_IRUSR | Mode::S_IWUSR).and_then(|()| {
                    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
                    open(path.as_str(), flags, Mode::empty())
                });
                outcome(opened, "opened")
            }
            ["protect-theirs"] => {
                let map = Mapping::new(theirs()?, their_size, false).map_err(failed("mmap"))?;
                outcome(map.make_writable(), "writable")
            }
            ["unseal-theirs"] => outcome(
                fcntl(theirs()?, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)),
                "sealed",
            ),
            ["find-theirs", text] => {
                let map = Mapping::new(theirs()?, their_size, false).map_err(failed("mmap"))?;
                if map.find(text.as_bytes()).is_some() {
                    "found"
                } else {
                    "absent"
                }
                .into()
            }
            // Gives the object a name, which it does not have.
            ["link-theirs", path] => {
                let source = format!("/proc/self/fd/{}", theirs()?.as_raw_fd());
                let result = linkat(
                    nix::fcntl::AT_FDCWD,
                    source.as_str(),
                    nix::fcntl::AT_FDCWD,
                    *path,
                    AtFlags::AT_SYMLINK_FOLLOW,
                );
                outcome(result, "linked")
            }
            other => return self.attack_line(other),
        })
    }

    /// Attacks the line, of which a guest has created both ends.
    fn attack_line(&self, order: &[&str]) -> Result<String, String> {
        Ok(match order {
            ["nonblock"] => {
                // The peer's descriptor shares its file status flags with the kept one.
                let flags = OFlag::from_bits_retain(
                    fcntl(self.kept.as_ref().ok_or("nothing kept")?, FcntlArg::F_GETFL)
                        .map_err(failed("F_GETFL"))?,
                );
                let flags = flags ^ OFlag::O_NONBLOCK;
                fcntl(
                    self.kept.as_ref().ok_or("nothing kept")?,
                    FcntlArg::F_SETFL(flags),
                )
                .map_err(failed("F_SETFL"))?;
                if flags.contains(OFlag::O_NONBLOCK) {
                    "non-blocking"
                } else {
                    "blocking"
                }
                .into()
            }
            // Until both buffers are full. Writing to the peer's own end fills the buffer that the peer would
            // write to.
            ["fill"] => {
                let mut count = 0;
                for socket in [self.line.as_ref(), self.kept.as_ref()].into_iter().flatten() {
                    while let Ok(sent) = send(
                        socket.as_raw_fd(),
                        &[0x99; 4096],
                        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                    ) {
                        count += sent;
                    }
                }
                format!("filled {count}")
            }
            ["garbage", count] => {
                let line = self.line.as_ref().ok_or("no line")?;
                let bytes = vec![0xee; number(count)?];
                outcome(
                    send(
                        line.as_raw_fd(),
                        &bytes,
                        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                    ),
                    "sent",
                )
            }
            // Garbage with descriptors, which a careless reader would keep open.
            ["parcel"] => {
                let line = self.line.as_ref().ok_or("no line")?;
                let pipe = pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?;
                outcome(
                    socket::send(line.as_fd(), b"!", &[pipe.0.as_fd(), pipe.1.as_fd()], None),
                    "sent",
                )
            }
            ["attach", kind] => return self.attach(kind),
            other => return Err(format!("no such order: {other:?}")),
        })
    }

    /// Sends attachments that no honest peer sends, and a message that announces them.
    fn attach(&self, kind: &str) -> Result<String, String> {
        const PAGE: u64 = 4096;
        const NO_SIZE: u64 = u64::MAX;
        let line = self.line.as_ref().ok_or("no line")?;
        let (mut stated, mut count, mut announced) = (PAGE, 1, 1);
        let mut seals =
            SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
        match kind {
            // "withheld" is a parcel without its descriptors.
            "sound" | "hole" | "withheld" => {}
            "writable" => seals.remove(SealFlag::F_SEAL_WRITE),
            // A mapping from before stays writable.
            "mapped" => seals = (seals - SealFlag::F_SEAL_WRITE) | SealFlag::F_SEAL_FUTURE_WRITE,
            "shrinks" => seals.remove(SealFlag::F_SEAL_SHRINK),
            "unsealed" => seals = SealFlag::empty(),
            "longer" => stated = 2 * PAGE,
            "too-large" => stated = u64::MAX - 1,
            "too-many" => (count, announced) = (100, 100),
            "absent" => count = 0,
            "more" => count = 2,
            "descriptor" => stated = NO_SIZE,
            other => return Err(format!("no such attachment: {other}")),
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let object = memfd_create("attached", flags).map_err(failed("memfd"))?;
        ftruncate(&object, PAGE.cast_signed()).map_err(failed("ftruncate"))?;
        if kind != "hole" {
            fallocate(&object, FallocateFlags::empty(), 0, PAGE.cast_signed())
                .map_err(failed("fallocate"))?;
        }
        fcntl(&object, FcntlArg::F_ADD_SEALS(seals)).map_err(failed("F_ADD_SEALS"))?;
        if count > 0 {
            let mut parcel = vec![2, count];
            if self.control.is_some() {
                // A publisher's first message.
                parcel.extend(1_u64.to_le_bytes());
            }
            parcel.extend(stated.to_le_bytes().repeat(count.into()));
            let passed = if kind == "withheld" { 0 } else { count };
            let descriptors = vec![object.as_fd(); passed.into()];
            socket::send(line.as_fd(), &parcel, &descriptors, None).map_err(failed("sendmsg"))?;
        }
        if kind == "shrinks" {
            ftruncate(&object, 0).map_err(failed("ftruncate"))?;
        }
        let map = self.own_map.as_ref().ok_or("no own memory")?;
        let flags = layout::FIRST | layout::LAST | announced << 8;
        map.store(layout::DATA, header(8, flags));
        map.store(layout::TAIL, 16);
        Ok(self.wake())
    }

    fn wake(&self) -> String {
        let Some(line) = &self.line else {
            return "no line".into();
        };
        outcome(
            send(
                line.as_raw_fd(),
                &[1],
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
            ),
            "woken",
        )
    }
}

/// Publishes a record that ends before the end of the ring.
fn append(map: &Mapping, flags: u32, payload: &[u8]) {
    let (tail, length) = (map.load(layout::TAIL), payload.len());
    let at = layout::DATA + usize::try_from(tail).unwrap_or(usize::MAX);
    map.store(at, header(length as u64, flags));
    map.write(at + 8, payload);
    map.store(layout::TAIL, tail + 8 + length.next_multiple_of(8) as u64);
}

fn fill(map: &Mapping, capacity: u64, length: u64) -> Result<String, String> {
    let count = capacity / (8 + length);
    for index in 0..count {
        let at = usize::try_from(index * (8 + length)).map_err(|error| error.to_string())?;
        map.store(layout::DATA + at, header(length, layout::FIRST | layout::LAST));
    }
    map.store(layout::TAIL, count * (8 + length));
    Ok(format!("filled {count}"))
}
