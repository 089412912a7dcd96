//! Attackers of the same user that inspect another process, or change what it runs.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::Command,
    ptr,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, open},
    sched::{CloneFlags, unshare},
    sys::{
        ptrace,
        signal::{Signal, kill},
        stat::{FchmodatFlags, Mode, fchmodat, fstat},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, getgid, getuid},
};

use super::{attackers::until, hostile_plain, inspector, number, serve};
use crate::{failed, mapping::Mapping};

pub(super) fn run(args: &[&str]) -> Result<(), String> {
    match args {
        ["open", victim, name] => open_descriptor(victim, name),
        ["hold-path", victim, name] => hold_path(victim, name),
        ["getfd", victim, name] => getfd(victim, name),
        ["attach", victim] => attach(victim),
        ["inspector-open", victim, port] => inspector::open(victim, port),
        ["inspector-signal", victim] => inspector::signal(victim),
        ["inspector-read", port, variable] => inspector::read(port, variable),
        ["read-memory", victim, text] => read_memory(victim, text),
        ["dump", victim, directory, text] => dump(victim, directory, text),
        ["fake-exe", program, rest @ ..] => {
            fake_exe(program)?;
            println!("faked");
            super::run_role(rest)
        }
        ["trace", program, rest @ ..] => trace(program, rest),
        other => Err(format!("no such insider: {other:?}")),
    }
}

/// Returns the number of the victim's descriptor whose path contains `name`.
fn descriptor_of(victim: &str, name: &str) -> Result<String, String> {
    let mut found = None;
    until("the descriptor is there", || {
        found = fs::read_dir(format!("/proc/{victim}/fd"))
            .ok()
            .and_then(|entries| {
                entries.filter_map(Result::ok).find_map(|entry| {
                    let target = fs::read_link(entry.path()).ok()?;
                    target
                        .to_string_lossy()
                        .contains(name)
                        .then(|| entry.file_name().to_string_lossy().into_owned())
                })
            });
        found.is_some()
    })?;
    found.ok_or_else(|| "no descriptor".into())
}

/// Returns whether the directory of the victim's descriptors is inaccessible, and prints it if so.
fn is_closed(victim: &str) -> bool {
    let closed = fs::read_dir(format!("/proc/{victim}/fd"))
        .err()
        .is_some_and(|error| error.raw_os_error() == Some(Errno::EACCES as i32));
    if closed {
        println!("EACCES");
    }
    closed
}

/// Opens a file again through a path that leads to it, whatever its mode: its owner may change the mode.
fn reopen(path: &str) -> Result<OwnedFd, Errno> {
    fchmodat(
        AT_FDCWD,
        path,
        Mode::S_IRUSR | Mode::S_IWUSR,
        FchmodatFlags::FollowSymlink,
    )?;
    // Without O_NONBLOCK, open would wait until a lease is released or broken (fcntl(2)).
    open(
        path,
        OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK,
        Mode::empty(),
    )
}

fn size_of_file(object: &OwnedFd) -> Result<usize, String> {
    usize::try_from(fstat(object).map_err(failed("fstat"))?.st_size).map_err(|error| error.to_string())
}

fn show_opened(opened: Result<OwnedFd, Errno>) -> Result<(), String> {
    match opened {
        Ok(object) => {
            println!("opened");
            let size = size_of_file(&object)?;
            hostile_plain::manipulate(&object, size)
        }
        Err(errno) => {
            println!("{errno:?}");
            Ok(())
        }
    }
}

/// Opens another process's descriptor through /proc.
fn open_descriptor(victim: &str, name: &str) -> Result<(), String> {
    if is_closed(victim) {
        return Ok(());
    }
    let number = descriptor_of(victim, name)?;
    show_opened(reopen(&format!("/proc/{victim}/fd/{number}")))
}

/// Takes an `O_PATH` descriptor, which does not count as an open, and opens the object through it when
/// ordered to.
fn hold_path(victim: &str, name: &str) -> Result<(), String> {
    if is_closed(victim) {
        return Ok(());
    }
    let number = descriptor_of(victim, name)?;
    let kept = open(
        format!("/proc/{victim}/fd/{number}").as_str(),
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed("open"))?;
    println!("holding");
    let mut opened = None;
    serve(|order| {
        Ok(match order {
            ["reopen"] => match reopen(&format!("/proc/self/fd/{}", kept.as_raw_fd())) {
                Ok(object) => {
                    opened = Some(object);
                    "opened".into()
                }
                Err(errno) => format!("{errno:?}"),
            },
            ["find", text] => {
                let object = opened.as_ref().ok_or("not opened")?;
                let map = Mapping::new(object, size_of_file(object)?, false).map_err(failed("mmap"))?;
                if map.find(text.as_bytes()).is_some() {
                    "found"
                } else {
                    "absent"
                }
                .into()
            }
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

/// Copies another process's descriptor (pidfd_getfd(2)).
fn getfd(victim: &str, name: &str) -> Result<(), String> {
    let pid: i32 = number(victim)?;
    // SAFETY: pidfd_open takes two integers.
    let pidfd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
        .map_err(failed("pidfd_open"))?;
    let get = |descriptor: RawFd| {
        // SAFETY: pidfd_getfd takes three integers.
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, descriptor, 0) })
    };
    if fs::read_dir(format!("/proc/{victim}/fd")).is_err() {
        // The numbers of the open descriptors are hidden, so try all that are likely.
        let refused: Vec<Errno> = (0..256).filter_map(|descriptor| get(descriptor).err()).collect();
        if refused == [Errno::EPERM; 256] {
            println!("EPERM");
        } else {
            println!("{refused:?}");
        }
        return Ok(());
    }
    let copy = get(number(&descriptor_of(victim, name)?)?);
    show_opened(copy.and_then(|copy| {
        let copy = RawFd::try_from(copy).map_err(|_| Errno::EBADF)?;
        // SAFETY: the kernel has just installed this descriptor for this process, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(copy) })
    }))
}

/// Reads another process's shared mappings through /proc/PID/mem until they contain the text.
fn read_memory(victim: &str, text: &str) -> Result<(), String> {
    let mut memory = match fs::File::open(format!("/proc/{victim}/mem")) {
        Ok(memory) => memory,
        Err(error) => {
            println!("{:?}", Errno::from_raw(error.raw_os_error().unwrap_or(0)));
            return Ok(());
        }
    };
    println!("reading");
    until("the text turns up", || {
        let maps = fs::read_to_string(format!("/proc/{victim}/maps")).unwrap_or_default();
        maps.lines()
            .filter(|line| line.contains("/dev/shm/") || line.contains("/memfd:"))
            .any(|line| {
                let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-')) else {
                    return false;
                };
                let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else {
                    return false;
                };
                let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(0)];
                memory.seek(SeekFrom::Start(from)).is_ok()
                    && memory.read_exact(&mut bytes).is_ok()
                    && bytes.windows(text.len()).any(|window| window == text.as_bytes())
            })
    })?;
    println!("found");
    Ok(())
}

/// Attaches to another process as its debugger, and tries to read a word of its memory without attaching.
fn attach(victim: &str) -> Result<(), String> {
    let pid = Pid::from_raw(number(victim)?);
    let attached = match ptrace::attach(pid) {
        Ok(()) => {
            waitpid(pid, None).map_err(failed("waitpid"))?;
            ptrace::detach(pid, None).map_err(failed("detach"))?;
            "attached".into()
        }
        Err(errno) => format!("{errno:?}"),
    };
    // The address does not matter: an unmapped one gives EFAULT if this process may read the other.
    let mut word = 0_u64;
    let own = libc::iovec {
        iov_base: (&raw mut word).cast(),
        iov_len: 8,
    };
    let theirs = libc::iovec {
        iov_base: ptr::without_provenance_mut(4096),
        iov_len: 8,
    };
    // SAFETY: the kernel writes at most the word; the other address belongs to another process.
    let read = unsafe { libc::process_vm_readv(pid.as_raw(), &raw const own, 1, &raw const theirs, 1, 0) };
    println!("{attached} {:?}", Errno::result(read).err());
    Ok(())
}

/// Raises the victim's limit of core files, makes it abort, and searches the core for the text.
fn dump(victim: &str, directory: &str, text: &str) -> Result<(), String> {
    let pid: i32 = number(victim)?;
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one rlimit and reads none.
    Errno::result(unsafe { libc::prlimit(pid, libc::RLIMIT_CORE, ptr::null(), &raw mut limit) })
        .map_err(failed("prlimit"))?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads one rlimit and writes none.
    Errno::result(unsafe { libc::prlimit(pid, libc::RLIMIT_CORE, &raw const limit, ptr::null_mut()) })
        .map_err(failed("prlimit"))?;
    kill(Pid::from_raw(pid), Signal::SIGABRT).map_err(failed("SIGABRT"))?;
    let core = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("core");
    let found = || {
        fs::read_dir(directory)
            .ok()?
            .filter_map(Result::ok)
            .find(core)
            .map(|entry| entry.path())
    };
    // The kernel writes the core before the process becomes a zombie.
    until("the victim is dead", || {
        crate::process::state_of(Pid::from_raw(pid)).is_none_or(|state| state == 'Z')
    })?;
    let Some(path) = found() else {
        println!("no core");
        return Ok(());
    };
    let bytes = fs::read(&path).map_err(|error| error.to_string())?;
    fs::remove_file(&path).map_err(|error| error.to_string())?;
    let there = bytes.windows(text.len()).any(|window| window == text.as_bytes());
    println!("{}", if there { "found" } else { "absent" });
    Ok(())
}

/// Starts a program as its tracer, which may read and write all of its memory from the first instruction on.
fn trace(program: &str, args: &[&str]) -> Result<(), String> {
    let mut command = Command::new(Path::new(program));
    command.args(args);
    // SAFETY: traceme is one system call, which is allowed after a fork.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    // The child stops at its exec, and spawn returns then.
    let child = command.spawn().map_err(|error| error.to_string())?;
    let pid = Pid::from_raw(child.id().cast_signed());
    println!("tracing");
    loop {
        match waitpid(pid, None).map_err(failed("waitpid"))? {
            // At its first stop, the tracer could write anything into the child.
            WaitStatus::Stopped(_, signal) => {
                let signal = (signal != Signal::SIGTRAP).then_some(signal);
                ptrace::cont(pid, signal).map_err(failed("cont"))?;
            }
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return Ok(()),
            _ => {}
        }
    }
}

/// The argument of `PR_SET_MM_MAP` (linux/prctl.h).
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: *mut u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Makes /proc/self/exe of this process name another file.
fn fake_exe(program: &str) -> Result<(), String> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(failed("a user namespace"))?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| format!("{file}: {error}"))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("{uid} {uid} 1"))?;
    write("gid_map", format!("{gid} {gid} 1"))?;
    let exe = fs::File::open(program).map_err(|error| error.to_string())?;
    let stat = fs::read_to_string("/proc/self/stat").map_err(|error| error.to_string())?;
    let own = fs::read_link("/proc/self/exe").map_err(|error| error.to_string())?;
    // proc_pid_stat(5) counts fields from 1; the text after the name starts with the third.
    let after_name = stat.rsplit_once(") ").ok_or("no stat")?.1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let field = |index: usize| {
        fields
            .get(index - 3)
            .ok_or("a short stat")
            .map(|text| number::<u64>(text))?
    };
    // SAFETY: sbrk(0) returns the end of the heap and changes nothing.
    let brk = unsafe { libc::sbrk(0) } as u64;
    let map = MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk,
        start_stack: field(28)?,
        arg_start: field(48)?,
        arg_end: field(49)?,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: ptr::null_mut(),
        auxv_size: 0,
        exe_fd: exe.as_raw_fd().cast_unsigned(),
    };
    replace_own_mappings(&own)?;
    // SAFETY: the kernel reads one prctl_mm_map.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            libc::PR_SET_MM_MAP,
            &raw const map,
            size_of::<MemoryMap>(),
            0,
        )
    };
    Errno::result(result).map(drop).map_err(failed("PR_SET_MM_MAP"))
}

/// Replaces the executable's mappings by anonymous copies. The kernel changes a process's executable only if
/// nothing of the old one is mapped.
fn replace_own_mappings(own: &Path) -> Result<(), String> {
    let maps = fs::read_to_string("/proc/self/maps").map_err(|error| error.to_string())?;
    let mut ranges = Vec::new();
    for line in maps
        .lines()
        .filter(|line| line.ends_with(&*own.to_string_lossy()))
    {
        let (range, rest) = line.split_once(' ').ok_or("maps")?;
        let (from, to) = range.split_once('-').ok_or("maps")?;
        let parse = |text: &str| usize::from_str_radix(text, 16).map_err(|error| error.to_string());
        let mut protection = 0;
        for (letter, bit) in [
            ('r', libc::PROT_READ),
            ('w', libc::PROT_WRITE),
            ('x', libc::PROT_EXEC),
        ] {
            if rest[..4].contains(letter) {
                protection |= bit;
            }
        }
        ranges.push((parse(from)?, parse(to)? - parse(from)?, protection));
    }
    for (from, length, protection) in ranges {
        let place = ptr::with_exposed_provenance_mut::<libc::c_void>(from);
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let copy = unsafe { libc::mmap(ptr::null_mut(), length, writable, flags, -1, 0) };
        if copy == libc::MAP_FAILED {
            return Err("no memory for a copy".into());
        }
        // SAFETY: the maps file has just listed the range as mapped, and the copy has the same length.
        unsafe { ptr::copy_nonoverlapping(place.cast::<u8>(), copy.cast::<u8>(), length) };
        // SAFETY: the range is exactly the new mapping.
        Errno::result(unsafe { libc::mprotect(copy, length, protection) }).map_err(failed("mprotect"))?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the copy has the same bytes and the same protection, and replaces the old mapping
        // atomically. The only thread of this process is inside the system call at that moment.
        let moved = unsafe { libc::mremap(copy, length, length, flags, place) };
        if moved == libc::MAP_FAILED {
            return Err(format!("mremap: {}", Errno::last()));
        }
    }
    Ok(())
}
