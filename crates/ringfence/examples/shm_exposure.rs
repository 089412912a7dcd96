//! What shared objects leave open to other processes of the same user: the numbers in `docs/internals/promises.md`.
//!
//! ```text
//! cargo run --release --example shm_exposure [TRIES]     the window between shm_open and shm_unlink
//! cargo run --release --example shm_exposure late        what is left to a descriptor had in that window
//! ```
//!
//! A watcher, another process of the same user, waits for names in /dev/shm and opens each with `O_PATH`, while this
//! one makes objects as the shm backing does (exclusive, with mode 0, unlinked at once), and then while two more
//! processes join with that backing. Then three questions are put to one such object: can it be sealed, can a peer
//! cut it, does the lease keep a later opener out.

use std::{
    collections::VecDeque,
    error::Error,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, SealFlag, fcntl, open},
    libc,
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{shm_open, shm_unlink},
        stat::{FchmodatFlags, Mode, fchmodat, fstat},
    },
    unistd::{ftruncate, read},
};
use ringfence::{Backing, Options, join};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const DIRECTORY: &str = "/dev/shm";
const SIZE: i64 = 1 << 16;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("watch") => watch(arguments.get(1).is_some_and(|how| how == "spin")),
        Some("read") => read_on(arguments.get(1).ok_or("which descriptor?")?.parse()?),
        Some("pair") => pair(&arguments[1..]),
        Some("late") => late(),
        tries => expose(tries.map_or(Ok(1000), str::parse)?),
    }
}

fn expose(tries: u32) -> Result<()> {
    println!(
        "Linux {}",
        std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    );
    for how in ["sleep", "spin"] {
        let (mut linked, mut noticed) = (0, 0);
        let wins = watched(how, || {
            for number in 0..tries {
                let object = create(number)?;
                linked += u32::from(fstat(&object)?.st_nlink != 0);
                noticed += u32::from(lease(&object) == Err(Errno::EAGAIN));
                // Back to where the watcher waits for the next one; not part of what is measured.
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })?;
        println!(
            "bare, a watcher that {how}s: {tries} objects, {wins} opened with O_PATH, {noticed} of them noticed by the \
             lease, {linked} by the link count"
        );
        // Each makes one object for each channel.
        let joins = (tries / 2).to_string();
        let address = format!("@exposure-{}", std::process::id());
        let wins = watched(how, || {
            let mut both = Vec::new();
            for _ in 0..2 {
                both.push(myself(&["pair", &address, &joins])?);
            }
            for mut one in both {
                if !one.wait()?.success() {
                    return Err("a join has failed".into());
                }
            }
            Ok(())
        })?;
        println!(
            "join, a watcher that {how}s: {} objects, {wins} opened with O_PATH, and every join succeeded",
            tries / 2 * 2
        );
    }

    let object = create(0)?;
    ftruncate(&object, SIZE)?;
    println!(
        "sealing it: {:?}",
        fcntl(&object, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))
    );
    fcntl(&object, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let mut peer = myself(&["read", &object.as_raw_fd().to_string()])?;
    peer.stdout.take().ok_or("no pipe")?.read_exact(&mut [0])?;
    ftruncate(&object, 0)?;
    peer.stdin.take().ok_or("no pipe")?.write_all(b"again")?;
    println!(
        "cutting it under a mapping: the reader ends with signal {:?} (SIGBUS is {})",
        peer.wait()?.signal(),
        libc::SIGBUS
    );

    let (held, object) = open_in_window()?;
    lease(&object)?;
    let path = made_mine(&held)?;
    println!(
        "an O_PATH descriptor had before the lease, reopened under it: {:?}",
        open(path.as_str(), OFlag::O_RDWR | OFlag::O_NONBLOCK, Mode::empty()).map(drop)
    );
    Ok(())
}

/// Two objects, each mapped and its descriptor closed as after a handshake, and another process with an `O_PATH` descriptor
/// that is ready to wait.
fn late() -> Result<()> {
    let (shm_held, shm) = open_in_window()?;
    ftruncate(&shm, SIZE)?;
    let raw = memfd_create("exposure", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let path = format!("/proc/self/fd/{}", raw.as_raw_fd());
    let memfd = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    let memfd_held = open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    drop(raw);
    ftruncate(&memfd, SIZE)?;
    for (what, held, object) in [("shm", shm_held, shm), ("memfd", memfd_held, memfd)] {
        let map = memmap2::MmapOptions::new()
            .len(usize::try_from(SIZE)?)
            .map_raw(&object)?;
        if what == "memfd" {
            let seals = SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
            fcntl(&object, FcntlArg::F_ADD_SEALS(seals))?;
        }
        lease(&object)?;
        drop(object);
        let path = made_mine(&held)?;
        let start = Instant::now();
        let opened = open(path.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
        println!(
            "{what}: open after {:.1} s; reading {:?}, writing {:?}, cutting {:?}",
            start.elapsed().as_secs_f64(),
            read(&opened, &mut [0; 8]),
            nix::unistd::write(&opened, b"x"),
            ftruncate(&opened, 0)
        );
        drop(map);
    }
    Ok(())
}

/// Mode 0 does not stop the owner: it changes the mode of what it holds, and opens that.
fn made_mine(held: &OwnedFd) -> Result<String> {
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    fchmodat(
        nix::fcntl::AT_FDCWD,
        path.as_str(),
        mode,
        FchmodatFlags::FollowSymlink,
    )?;
    Ok(path)
}

/// Joins again and again with the shm backing.
fn pair(arguments: &[String]) -> Result<()> {
    let [address, joins] = arguments else {
        return Err("which address, and how often?".into());
    };
    let options = Options::new().backing(Backing::Shm).capacity(4096).wait(true);
    for _ in 0..joins.parse::<u32>()? {
        let mut channel = join(&address.parse()?, &options)?;
        // So that neither leaves before the other has come.
        channel.sender().send(b"!")?;
        channel.receiver().receive(&mut [0])?;
    }
    Ok(())
}

/// How many names a watcher gets hold of while something is done.
fn watched(how: &str, what: impl FnOnce() -> Result<()>) -> Result<u32> {
    let mut watcher = myself(&["watch", how])?;
    let mut answer = watcher.stdout.take().ok_or("no pipe")?;
    answer.read_exact(&mut [0])?;
    what()?;
    drop(watcher.stdin.take());
    // One more name wakes it to see that this is the end.
    drop(create(0)?);
    let mut wins = String::new();
    answer.read_to_string(&mut wins)?;
    watcher.wait()?;
    Ok(wins.trim().parse()?)
}

fn create(number: u32) -> Result<OwnedFd> {
    let name = format!("/exposure-{}-{number}", std::process::id());
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let object = shm_open(name.as_str(), flags, Mode::empty())?;
    shm_unlink(name.as_str())?;
    Ok(object)
}

/// An object, and the descriptor that a watcher would have got in the window.
fn open_in_window() -> Result<(OwnedFd, OwnedFd)> {
    let name = format!("/exposure-{}", std::process::id());
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let object = shm_open(name.as_str(), flags, Mode::empty())?;
    let held = open(
        format!("{DIRECTORY}{name}").as_str(),
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    shm_unlink(name.as_str())?;
    Ok((held?, object))
}

fn lease(object: &OwnedFd) -> std::result::Result<(), Errno> {
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(object.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) })?;
    // SAFETY: F_SETOWN takes an integer and touches no memory of ours. 0 names no process: SIGIO would end this process.
    Errno::result(unsafe { libc::fcntl(object.as_raw_fd(), libc::F_SETOWN, 0) }).map(drop)
}

/// This program once more, with both its ends in pipes.
fn myself(arguments: &[&str]) -> Result<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?)
}

/// Opens every name that appears, until standard input ends, and says how many it got.
fn watch(spin: bool) -> Result<()> {
    let flags = if spin { libc::IN_NONBLOCK } else { 0 };
    // SAFETY: inotify_init1 takes an integer.
    let number = Errno::result(unsafe { libc::inotify_init1(flags | libc::IN_CLOEXEC) })?;
    // SAFETY: the kernel has just installed this descriptor for us.
    let inotify = unsafe { OwnedFd::from_raw_fd(number) };
    let directory = std::ffi::CString::new(DIRECTORY)?;
    // SAFETY: the path is a string with its terminating NUL, and lives through the call.
    let added = unsafe { libc::inotify_add_watch(number, directory.as_ptr(), libc::IN_CREATE) };
    Errno::result(added)?;
    std::io::stdout().write_all(b"!")?;
    std::io::stdout().flush()?;
    let (mut held, mut wins) = (VecDeque::new(), 0);
    let mut events = [0_u8; 4096];
    loop {
        let count = match read(&inotify, &mut events) {
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            other => other?,
        };
        // The last name is only there to wake this up.
        if has_ended()? {
            println!("{wins}");
            return Ok(());
        }
        let mut at = 0;
        while at < count {
            // struct inotify_event: wd, mask, cookie and len, four bytes each, then the name.
            let length = usize::try_from(u32::from_ne_bytes(events[at + 12..at + 16].try_into()?))?;
            let name = &events[at + 16..at + 16 + length];
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let path = [DIRECTORY.as_bytes(), b"/", name].concat();
            if let Ok(object) = open(path.as_slice(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
                wins += 1;
                held.push_back(object);
                // Long enough for the other to have asked for its lease.
                if held.len() > 64 {
                    held.pop_front();
                }
            }
            at += 16 + length;
        }
    }
}

fn has_ended() -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let stdin = std::io::stdin();
    let mut polled = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut polled, PollTimeout::ZERO)? > 0)
}

/// Reads the first byte of a mapping, and once more after a word on standard input.
fn read_on(number: i32) -> Result<()> {
    // SAFETY: the process that started this one left that descriptor open for it.
    let object = unsafe { BorrowedFd::borrow_raw(number) };
    let map = memmap2::MmapOptions::new()
        .len(usize::try_from(SIZE)?)
        .map_raw_read_only(&object)?;
    // SAFETY: the first byte of a mapping that is SIZE bytes long.
    let first = unsafe { map.as_ptr().read_volatile() };
    std::io::stdout().write_all(&[first])?;
    std::io::stdout().flush()?;
    std::io::stdin().read_exact(&mut [0])?;
    // SAFETY: as above, as far as this process knows: that it may not be so is what is shown here.
    let _ = unsafe { map.as_ptr().read_volatile() };
    Ok(())
}
