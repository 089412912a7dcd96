//! Attackers that are no peer: they watch objects, link them, connect, or sit between two peers.

use std::{
    env, fs,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, FallocateFlags, FcntlArg, FdFlag, OFlag, fallocate, fcntl, open},
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        memfd::{MFdFlags, memfd_create},
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
        socket::{AddressFamily, SockFlag, SockType, UnixCredentials, accept4, connect, socket, socketpair},
        stat::{FchmodatFlags, Mode, fchmodat, fstat, stat},
        wait::{WaitStatus, waitpid},
    },
    unistd::{
        ForkResult, Gid, Pid, Uid, fork, ftruncate, getgid, getpid, getppid, gettid, getuid, linkat, pipe2,
        read, setgroups, setresgid, setresuid,
    },
};

use super::{hostile, hostile_plain, number, serve};
use crate::{
    failed,
    mapping::Mapping,
    plain,
    process::{TIME_LIMIT, is_stopped},
    protocol::{self, Frame},
    socket,
};

pub(super) fn run(args: &[&str]) -> Result<(), String> {
    match args {
        ["linker", victims @ ..] => linker(victims),
        ["watcher", victims @ ..] => watcher(victims),
        ["connect-then-exec", address, victim, genuine] => connect_then_exec(address, victim, genuine),
        ["socket-receiver", connection, victim, genuine] => receive_on_socket(connection, victim, genuine),
        ["connect", address] => connect_and_read(address),
        ["connect-and-exit", address] => socket::connect_to(address).map(drop).map_err(failed("connect")),
        ["exec-after-check", address, other] => exec_after_check(address, other),
        ["receiver", connection] => read_from_victim(&inherited(connection)?),
        ["fill-shm"] => fill_shm(),
        ["connect-many", address, count] => connect_many(address, number(count)?),
        ["listen-then-exec", address, genuine] => listen_then_exec(address, genuine),
        ["false-host", listener, genuine] => false_host(listener, genuine),
        ["wrap", address, victim, genuine] => wrap(address, victim, genuine),
        ["forge", victim, pretended, signal, value] => forge(
            number(victim)?,
            number(pretended)?,
            number(signal)?,
            number(value)?,
        ),
        ["flood"] => flood(),
        ["sigio", victim] => sigio(number(victim)?),
        ["pidfds", address] => pidfds(address),
        ["pid-forger", how, address, genuine] => forge_pid(how, address, genuine),
        ["pid-forger-in-namespace", how, address, genuine] => forge_pid_in_namespace(how, address, genuine),
        ["late-receiver", connection, gate] => {
            let connection = inherited(connection)?;
            wait_for_exec(gate)?;
            println!("genuine");
            read_from_victim(&connection)
        }
        ["group-dropper", uid, group, address] => drop_group(number(uid)?, number(group)?, address),
        other => Err(format!("no such attacker: {other:?}")),
    }
}

/// Sends the victim a leave notification in another process's name. A process may claim any sender in a
/// signal, as long as its `si_code` is not one of the kernel's (rt_sigqueueinfo(2)).
fn forge(victim: i32, pretended: i32, signal: i32, value: u64) -> Result<(), String> {
    // siginfo_t: number, errno, code, padding; then the pid, the uid and the value of eight bytes.
    let mut info = [0_i32; 32];
    info[0] = signal;
    info[2] = libc::SI_QUEUE;
    info[4] = pretended;
    info[5] = getuid().as_raw().cast_signed();
    for (word, bytes) in info[6..].iter_mut().zip(value.to_ne_bytes().chunks_exact(4)) {
        *word = i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // SAFETY: the kernel reads one siginfo of 128 bytes.
    let result = unsafe { libc::syscall(libc::SYS_rt_sigqueueinfo, victim, signal, info.as_ptr()) };
    Errno::result(result).map_err(failed("rt_sigqueueinfo"))?;
    println!("forged");
    Ok(())
}

/// Sends SIGIO to the victim's thread that handles alarms. If the victim has no such thread, sends it to the
/// main thread.
fn sigio(victim: i32) -> Result<(), String> {
    let tasks = fs::read_dir(format!("/proc/{victim}/task")).map_err(|error| error.to_string())?;
    let hears = tasks.flatten().find(|task| {
        // The kernel cuts a thread's name to 15 bytes.
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "ringfence-signa")
    });
    let thread = hears.and_then(|task| task.file_name().to_str()?.parse().ok());
    // SAFETY: tgkill takes three integers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, victim, thread.unwrap_or(victim), libc::SIGIO) };
    Errno::result(sent).map_err(failed("tgkill"))?;
    println!("sent");
    Ok(())
}

/// Fills the user's quota of pending signals, and keeps it full until the row ends.
fn flood() -> Result<(), String> {
    let (_, hard) = getrlimit(Resource::RLIMIT_SIGPENDING).map_err(failed("getrlimit"))?;
    setrlimit(Resource::RLIMIT_SIGPENDING, hard, hard).map_err(failed("setrlimit"))?;
    // Realtime signals of one number queue without a limit per number.
    let signal = libc::SIGRTMIN() + 1;
    plain::block(signal)?;
    let mut queued = 0_u64;
    loop {
        match plain::announce_exit(getpid(), signal) {
            Ok(()) => queued += 1,
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(failed("sigqueue")(errno)),
        }
    }
    println!("flooded {queued}");
    serve(|_| Ok("idle".into()))
}

/// Passes the victim a socket on which each read installs a descriptor, and sends 64 single bytes over it.
fn pidfds(address: &str) -> Result<(), String> {
    let (line, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(failed("socketpair"))?;
    hostile::set_passpidfd(&theirs).map_err(failed("SO_PASSPIDFD"))?;
    let connection = socket::connect_to(address).map_err(failed("connect"))?;
    socket::send(connection.as_fd(), &[0], &[theirs.as_fd()], None).map_err(failed("send"))?;
    for _ in 0..64 {
        socket::send(line.as_fd(), &[7], &[], None).map_err(failed("send"))?;
    }
    println!("sent");
    serve(|_| Ok("idle".into()))
}

/// Creates a user and a pid namespace, as any user may, and starts [`forge_pid_in_namespace`] as its first process.
fn forge_pid(how: &str, address: &str, genuine: &str) -> Result<(), String> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID).map_err(failed("a namespace"))?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        // As root in the namespace, the process keeps its capabilities when it executes another program.
        ("uid_map", format!("0 {uid} 1")),
        ("gid_map", format!("0 {gid} 1")),
    ] {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| format!("{file}: {error}"))?;
    }
    let own = env::current_exe().map_err(|error| error.to_string())?;
    let status = Command::new(own)
        .args([
            "role",
            "attacker",
            "pid-forger-in-namespace",
            how,
            address,
            genuine,
        ])
        .status();
    status.map(drop).map_err(|error| error.to_string())
}

/// Connects, leaves the connection to another process of this namespace, and becomes the genuine program.
fn forge_pid_in_namespace(how: &str, address: &str, genuine: &str) -> Result<(), String> {
    let connection = socket::connect_to(address).map_err(failed("connect"))?;
    // Closes when this process executes. The executable in /proc cannot be checked: /proc shows the numbers
    // of another namespace.
    let (gate, closes_at_exec) = pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?;
    // Created by this process, because the victim checks which process created the line.
    let (mine, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(failed("socketpair"))?;
    let left = [&connection, &mine, &theirs];
    let [first, second, third] = [leave_open(&connection)?, leave_open(&mine)?, leave_open(&theirs)?];
    let gate = leave_open(&gate)?;
    let own = env::current_exe().map_err(|error| error.to_string())?;
    let args: &[&str] = match how {
        "plain" => &["attacker", "late-receiver", &first, &gate],
        _ => &[
            "hostile",
            "ringfence",
            "pid-forger",
            &first,
            &gate,
            &second,
            &third,
        ],
    };
    Command::new(own)
        .arg("role")
        .args(args)
        .spawn()
        .map_err(|error| error.to_string())?;
    for descriptor in left {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed("FD_CLOEXEC"))?;
    }
    let error = Command::new(genuine).args(["role", "idle"]).exec();
    drop(closes_at_exec);
    Err(error.to_string())
}

/// Waits until the process at the other end of a pipe has executed another program.
pub(super) fn wait_for_exec(gate: &str) -> Result<(), String> {
    let gate = inherited(gate)?;
    match read(&gate, &mut [0]) {
        Ok(0) => Ok(()),
        other => Err(format!("the gate: {other:?}")),
    }
}

/// Connects with a supplementary group, drops the group, and reads what the victim sends.
fn drop_group(uid: u32, group: u32, address: &str) -> Result<(), String> {
    let (user, own_group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[Gid::from_raw(group)]).map_err(failed("setgroups"))?;
    setresgid(own_group, own_group, own_group).map_err(failed("setresgid"))?;
    setresuid(user, user, Uid::from_raw(0)).map_err(failed("setresuid"))?;
    let connection = socket::connect_to(address).map_err(failed("connect"))?;
    setresuid(user, Uid::from_raw(0), Uid::from_raw(0)).map_err(failed("setresuid"))?;
    setgroups(&[]).map_err(failed("setgroups"))?;
    setresuid(user, user, user).map_err(failed("setresuid"))?;
    println!("left");
    read_from_victim(&connection)
}

/// Waits until a condition holds that another process brings about.
pub(super) fn until(what: &str, mut so: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + TIME_LIMIT;
    while !so() {
        if Instant::now() > end {
            return Err(format!("timed out waiting until {what}"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Puts the victims on this process's processor and below it in priority, as any process may do to others of
/// the same user. When a victim then does something that wakes this process, this process runs before the
/// victim continues.
fn preempt(victims: &[&str]) -> Result<(), String> {
    let mut one = CpuSet::new();
    one.set(0).map_err(failed("CpuSet"))?;
    sched_setaffinity(Pid::from_raw(0), &one).map_err(failed("sched_setaffinity"))?;
    for victim in victims {
        // All existing threads; new ones inherit the setting.
        let tasks = fs::read_dir(format!("/proc/{victim}/task")).map_err(|error| error.to_string())?;
        for task in tasks.filter_map(Result::ok) {
            let task: i32 = number(&task.file_name().to_string_lossy())?;
            sched_setaffinity(Pid::from_raw(task), &one).map_err(failed("sched_setaffinity"))?;
            // SAFETY: all-zero bytes are a valid sched_param.
            let param: libc::sched_param = unsafe { std::mem::zeroed() };
            // SAFETY: the kernel reads one sched_param.
            Errno::result(unsafe { libc::sched_setscheduler(task, libc::SCHED_IDLE, &raw const param) })
                .map_err(failed("sched_setscheduler"))?;
        }
    }
    Ok(())
}

/// Watches /dev/shm, and calls `grab` with each object that appears, before its name is removed.
fn watch<T: Send + 'static>(
    victims: &[&str],
    mut grab: impl FnMut(&Path, usize) -> Result<T, Errno> + Send + 'static,
) -> Result<Arc<Mutex<Vec<T>>>, String> {
    preempt(victims)?;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC).map_err(failed("inotify"))?;
    watch
        .add_watch("/dev/shm", AddWatchFlags::IN_CREATE)
        .map_err(failed("inotify"))?;
    println!("watching");
    let grabbed: Arc<Mutex<Vec<T>>> = Arc::default();
    let known = Arc::clone(&grabbed);
    thread::spawn(move || {
        while let Ok(events) = watch.read_events() {
            for name in events.into_iter().filter_map(|event| event.name) {
                if name.to_string_lossy().starts_with("link-") {
                    continue;
                }
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                if let Ok(object) = grab(&Path::new("/dev/shm").join(&name), known.len()) {
                    known.push(object);
                }
            }
        }
    });
    Ok(grabbed)
}

/// Opens a grabbed object through a path that leads to it, and searches it. The owner of a file may change
/// its mode.
fn search(path: &str, text: &str) -> Result<&'static str, Errno> {
    fchmodat(
        AT_FDCWD,
        path,
        Mode::S_IRUSR | Mode::S_IWUSR,
        FchmodatFlags::FollowSymlink,
    )?;
    // Without O_NONBLOCK, open would wait until a lease is released or broken (fcntl(2)).
    let object = open(
        path,
        OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK,
        Mode::empty(),
    )?;
    let size = usize::try_from(fstat(&object)?.st_size).unwrap_or(0);
    let found = size > 0 && Mapping::new(object, size, true)?.find(text.as_bytes()).is_some();
    Ok(if found { "found" } else { "absent" })
}

/// Searches everything that was grabbed. Returns "found" if any object has the text, else the last answer.
fn search_all(paths: impl Iterator<Item = String>, text: &str) -> String {
    let mut answer = "absent".to_owned();
    for path in paths {
        match search(&path, text) {
            Ok("found") => return "found".into(),
            Ok(_) => {}
            Err(errno) => answer = format!("{errno:?}"),
        }
    }
    answer
}

/// Gives each object a second name.
fn linker(victims: &[&str]) -> Result<(), String> {
    let links = watch(victims, |found, index| {
        let link = format!("/dev/shm/link-{}-{index}", getpid());
        linkat(AT_FDCWD, found, AT_FDCWD, link.as_str(), AtFlags::empty()).map(|()| link)
    })?;
    serve(|order| {
        let links = links.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match order {
            ["count"] => links.len().to_string(),
            ["find", text] => search_all(links.iter().cloned(), text),
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

/// Opens each object with `O_PATH`. No lease prevents or notices that, because it does not count as an open.
fn watcher(victims: &[&str]) -> Result<(), String> {
    let kept = watch(victims, |found, _| {
        open(found, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
    })?;
    serve(|order| {
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = kept
            .iter()
            .map(|descriptor| format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        Ok(match order {
            ["count"] => kept.len().to_string(),
            ["find", text] => search_all(paths, text),
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

/// Connects, leaves the connection to another process, and becomes the genuine program. From then on,
/// /proc/PID/exe of the process that connected shows the genuine executable. The victim is stopped while this
/// happens.
fn connect_then_exec(address: &str, victim: &str, genuine: &str) -> Result<(), String> {
    socket::wait_for_listener(address)?;
    let pid = Pid::from_raw(number(victim)?);
    kill(pid, Signal::SIGSTOP).map_err(failed("SIGSTOP"))?;
    until("the victim has stopped", || is_stopped(pid))?;
    let connection = socket::connect_to(address).map_err(failed("connect"))?;
    let inherited = leave_open(&connection)?;
    let own = env::current_exe().map_err(|error| error.to_string())?;
    Command::new(own)
        .args(["role", "attacker", "socket-receiver", &inherited, victim, genuine])
        .spawn()
        .map_err(|error| error.to_string())?;
    fcntl(&connection, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed("FD_CLOEXEC"))?;
    Err(Command::new(genuine).args(["role", "idle"]).exec().to_string())
}

/// Keeps a descriptor open across `exec`, and returns its number.
fn leave_open(descriptor: &OwnedFd) -> Result<String, String> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty())).map_err(failed("FD_CLOEXEC"))?;
    Ok(descriptor.as_raw_fd().to_string())
}

pub(super) fn inherited(descriptor: &str) -> Result<OwnedFd, String> {
    let descriptor: RawFd = number(descriptor)?;
    // SAFETY: the program that started this one left this descriptor open for it, and only this call takes
    // it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Waits until its parent looks genuine, lets the victim continue, and reads what the victim sends over the
/// connection.
fn receive_on_socket(connection: &str, victim: &str, genuine: &str) -> Result<(), String> {
    let connection = inherited(connection)?;
    wait_for_genuine_parent(genuine)?;
    let parent = getppid();
    // The plain program speaks first. ringfence waits for a HELLO, which any holder of the socket can send.
    let (line, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(failed("socketpair"))?;
    let hello = protocol::hello(&[0x5a; 32], &[0; 32], 64 * 1024, 1 << 20, 1);
    // In the name of the process that connected. Without CAP_SYS_ADMIN, the kernel rejects credentials of
    // another process.
    let claim = UnixCredentials::from(libc::ucred {
        pid: parent.as_raw(),
        uid: getuid().as_raw(),
        gid: getgid().as_raw(),
    });
    let forged = socket::send(connection.as_fd(), &hello, &[theirs.as_fd()], Some(claim));
    let sent = socket::send(connection.as_fd(), &hello, &[theirs.as_fd()], None);
    drop(theirs);
    println!("forged {forged:?}, own {sent:?}");
    kill(Pid::from_raw(number(victim)?), Signal::SIGCONT).map_err(failed("SIGCONT"))?;
    read_from_victim(&connection)?;
    // The line that was passed with the HELLO: does the victim send anything over it?
    let (frame, descriptors) = protocol::receive_frame(line.as_fd(), 100);
    println!("{frame}, {} descriptors", descriptors.len());
    Ok(())
}

/// Reads what the victim sends over a connection. If it is an object, maps it and executes orders about it.
fn read_from_victim(connection: &OwnedFd) -> Result<(), String> {
    let mut parcel =
        socket::receive_exactly(connection.as_fd(), size_of::<usize>()).map_err(failed("receive"))?;
    if parcel.bytes == b"ringfnce" {
        let (frame, descriptors) = protocol::receive_frame_after(connection.as_fd(), 30_000, parcel.bytes);
        println!("{frame}, {} descriptors", descriptors.len());
        return Ok(());
    }
    let (Some(object), Ok(size)) = (parcel.descriptors.pop(), <[u8; 8]>::try_from(parcel.bytes)) else {
        println!("nothing");
        return Ok(());
    };
    let size = usize::from_ne_bytes(size);
    println!("holding {size}");
    hostile_plain::manipulate(&object, size)
}

/// Connects, and reads what the victim sends.
fn connect_and_read(address: &str) -> Result<(), String> {
    let connection = socket::connect_to(address).map_err(failed("connect"))?;
    read_from_victim(&connection)
}

/// Starts as the genuine program, connects, passes every check, and then becomes another program that keeps
/// the connection.
fn exec_after_check(address: &str, other: &str) -> Result<(), String> {
    let connection = socket::connect_to(address).map_err(failed("connect"))?;
    // The victim sends its first bytes after the check.
    if !protocol::readable(connection.as_fd(), 30_000) {
        return Err("nothing arrived".into());
    }
    let inherited = leave_open(&connection)?;
    Err(Command::new(other)
        .args(["role", "attacker", "receiver", &inherited])
        .exec()
        .to_string())
}

/// Listens, leaves the listening socket to another process, and becomes the genuine program. `SO_PEERCRED`
/// names the process that called listen, to every client.
fn listen_then_exec(address: &str, genuine: &str) -> Result<(), String> {
    let listener = socket::listen_at(address).map_err(failed("listen"))?;
    let inherited = leave_open(&listener)?;
    let own = env::current_exe().map_err(|error| error.to_string())?;
    Command::new(own)
        .args(["role", "attacker", "false-host", &inherited, genuine])
        .spawn()
        .map_err(|error| error.to_string())?;
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(failed("FD_CLOEXEC"))?;
    Err(Command::new(genuine).args(["role", "idle"]).exec().to_string())
}

/// Waits until its parent looks genuine, and passes an object of its own to the client. It acts as the plain
/// program does, or as ringfence does if the client speaks first.
fn false_host(listener: &str, genuine: &str) -> Result<(), String> {
    let listener = inherited(listener)?;
    wait_for_genuine_parent(genuine)?;
    println!("listening");
    let connection = accept4(&listener, SockFlag::SOCK_CLOEXEC).map_err(failed("accept"))?;
    if protocol::readable(connection.as_fd(), 300) {
        let (frame, mut descriptors) = protocol::receive_frame(connection.as_fd(), 30_000);
        let (Frame::Hello(nonce, ..), Some(line)) = (frame, descriptors.pop()) else {
            return Err("no HELLO".into());
        };
        let answer = protocol::hello(&[0x5a; 32], &nonce, 64 * 1024, 1 << 20, 1);
        println!("answered {:?}", socket::send(line.as_fd(), &answer, &[], None));
        let (frame, descriptors) = protocol::receive_frame(line.as_fd(), 30_000);
        println!("{frame}, {} descriptors", descriptors.len());
        return Ok(());
    }
    let size: usize = 64 * 1024;
    let object = memfd_create("false", MFdFlags::MFD_CLOEXEC).map_err(failed("memfd"))?;
    ftruncate(&object, 64 * 1024).map_err(failed("ftruncate"))?;
    socket::send(connection.as_fd(), &size.to_ne_bytes(), &[object.as_fd()], None).map_err(failed("send"))?;
    println!("passed");
    hostile_plain::manipulate(&object, size)
}

fn wait_for_genuine_parent(genuine: &str) -> Result<(), String> {
    let wanted = stat(genuine).map_err(failed("stat"))?;
    let parent = getppid();
    until("the parent looks genuine", || {
        stat(format!("/proc/{parent}/exe").as_str())
            .is_ok_and(|found| (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino))
    })
}

/// Lets a child connect and exit, and starts processes until the genuine program has that child's pid. The
/// victim is stopped during this.
fn wrap(address: &str, victim: &str, genuine: &str) -> Result<(), String> {
    socket::wait_for_listener(address)?;
    let pid = Pid::from_raw(number(victim)?);
    kill(pid, Signal::SIGSTOP).map_err(failed("SIGSTOP"))?;
    until("the victim has stopped", || is_stopped(pid))?;
    let socket = socket::stream().map_err(failed("socket"))?;
    let name = socket::address(address).map_err(failed("address"))?;
    // SAFETY: this process has one thread, and the child makes one system call and exits.
    let wanted = match unsafe { fork() }.map_err(failed("fork"))? {
        ForkResult::Child => {
            let failed = connect(socket.as_raw_fd(), &name).is_err();
            // SAFETY: _exit ends the child without running any code of the parent, such as exit handlers.
            unsafe { libc::_exit(i32::from(failed)) }
        }
        ForkResult::Parent { child } => child,
    };
    if waitpid(wanted, None).map_err(failed("waitpid"))? != WaitStatus::Exited(wanted, 0) {
        return Err("the child did not connect".into());
    }
    println!("pid {wanted}");
    let limit = fs::read_to_string("/proc/sys/kernel/pid_max").map_err(|error| error.to_string())?;
    let numbers: i32 = number(limit.trim())?;
    let mut count = 0;
    let mut is_near = false;
    loop {
        count += 1;
        let last = if is_near {
            // SAFETY: each thread was joined, so this process has one, and the child makes a few system calls and then exits or
            // executes.
            match unsafe { fork() }.map_err(failed("fork"))? {
                ForkResult::Child if getpid() == wanted => {
                    let error = Command::new(genuine).args(["role", "idle"]).exec();
                    return Err(error.to_string());
                }
                // SAFETY: as above.
                ForkResult::Child => unsafe { libc::_exit(0) },
                ForkResult::Parent { child } if child == wanted => break,
                ForkResult::Parent { child } => {
                    waitpid(child, None).map_err(failed("waitpid"))?;
                    child
                }
            }
        } else {
            // A thread takes the next number as well, in a tenth of the time.
            thread::spawn(gettid)
                .join()
                .map_err(|_| "a thread has panicked")?
        };
        // Close to the number, a thread could take it, so only processes are started. After the largest number, the kernel leaves out
        // the first 300.
        is_near = (1..=600).contains(&(wanted.as_raw() - last.as_raw()).rem_euclid(numbers));
    }
    let looks = stat(genuine).map_err(failed("stat"))?;
    until("the number is the genuine program's", || {
        stat(format!("/proc/{wanted}/exe").as_str()).is_ok_and(|found| found.st_ino == looks.st_ino)
    })?;
    println!("wrapped after {count}");
    kill(pid, Signal::SIGCONT).map_err(failed("SIGCONT"))?;
    let result = read_from_victim(&socket);
    kill(wanted, Signal::SIGKILL).map_err(failed("SIGKILL"))?;
    waitpid(wanted, None).map_err(failed("waitpid"))?;
    result
}

/// Connects up to `count` times, or until the kernel refuses, and sends nothing.
fn connect_many(address: &str, count: usize) -> Result<(), String> {
    let name = socket::address(address).map_err(failed("address"))?;
    let mut connections = Vec::new();
    let mut last = "no error".to_owned();
    for _ in 0..count {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(failed("socket"))?;
        match connect(socket.as_raw_fd(), &name) {
            Ok(()) => connections.push(socket),
            Err(errno) => {
                last = format!("{errno:?}");
                break;
            }
        }
    }
    println!("connected {} {last}", connections.len());
    serve(|_| Ok("idle".into()))
}

/// Allocates all free space of /dev/shm.
fn fill_shm() -> Result<(), String> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let file = open("/dev/shm/filler", flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed("open"))?;
    let (mut at, mut step) = (0, 1 << 20);
    while step >= 4096 {
        match fallocate(&file, FallocateFlags::empty(), at, step) {
            Ok(()) => at += step,
            Err(Errno::ENOSPC) => step /= 2,
            Err(errno) => return Err(failed("fallocate")(errno)),
        }
    }
    println!("filled {at}");
    serve(|order| match order {
        ["empty"] => {
            fs::remove_file("/dev/shm/filler").map_err(|error| error.to_string())?;
            std::process::exit(0)
        }
        other => Err(format!("no such order: {other:?}")),
    })
}
