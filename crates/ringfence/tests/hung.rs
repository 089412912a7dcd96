//! Files and sockets whose kernel calls do not return: a process that runs such a file is refused or times out, one that passes such a
//! file or socket is refused, and nothing hangs.

mod support;

use std::{
    ffi::CString,
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use nix::{
    libc,
    sys::{
        socket::{setsockopt, sockopt},
        stat::SFlag,
    },
    unistd::geteuid,
};
use ringfence::{
    Address, Arrival, Channels, Digest, Options, Policy, Program, Refused, Role, connect, listen, member,
};
use support::{Actor, TIME_LIMIT, fresh_address, report, small, wait_for_test, wire};

/// More than the threads that carry out handshakes or close descriptors.
const CONNECTIONS: usize = 40;

/// The other processes of these tests.
#[test]
fn role() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    match role.as_str() {
        "server" => serve(Path::new(&arguments[0])),
        "knock" => {
            let address: Address = arguments[0].parse().unwrap();
            report("ready");
            wait_for_test();
            let outcome = connect(&address, &small().policy(Policy::new().any_executable()));
            report(outcome.map_or_else(|error| error.code(), |_| "connected"));
        }
        "leaves sockets" => leave_sockets(&arguments[0]),
        "serves" => {
            let policy = Policy::new()
                .any_executable()
                .uids([arguments[1].parse().unwrap()]);
            let listener = listen(&arguments[0].parse().unwrap(), &small().policy(policy)).unwrap();
            report("ready");
            wait_for_test();
            listener.close(Channels::Close);
        }
        "passes line" | "passes object" | "passes lock" => {
            let file = File::open(&arguments[1]).unwrap().into();
            report("ready");
            wait_for_test();
            pass(&role, &arguments[0], file);
        }
        other => panic!("no such role: {other}"),
    }
}

/// Passes a file in place of the line, the object or the lock, and reports the refusal. Returns once the file's filesystem has ended.
fn pass(role: &str, address: &str, file: OwnedFd) {
    if role == "passes lock" {
        let listener = UnixListener::bind(address).unwrap();
        setsockopt(&listener, sockopt::PassCred, &true).unwrap();
        report("listening");
        let passed = |socket: &UnixListener| vec![socket.try_clone().unwrap().into(), file];
        return report(wire::member_host_at(&listener, passed));
    }
    let mut stream = wire::connect(address);
    let hello = wire::hello_for(wire::SERVICE, &[0; 32]);
    if role == "passes line" {
        wire::send(&stream, &hello, Some(file.as_fd()));
    } else {
        let (mine, theirs) = wire::line();
        wire::send(&stream, &hello, Some(theirs.as_fd()));
        stream = mine;
        let (_, body) = wire::receive(&mut stream).unwrap();
        wire::send(&stream, &wire::offer(&body[..32]), Some(file.as_fd()));
        assert_eq!(wire::receive(&mut stream).unwrap().0, 2, "the host's OFFER");
    }
    let (kind, body) = wire::receive(&mut stream).unwrap();
    let body = String::from_utf8_lossy(&body[2..]).replace(char::is_control, " ");
    report(format!("{kind}:{body}"));
}

/// Sends sockets that do not close for ten minutes, over connections that it closes at the test's command.
fn leave_sockets(address: &str) {
    let input = std::io::stdin();
    let left: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut stuck = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let unread = listener.accept().unwrap();
            stuck.set_nonblocking(true).unwrap();
            while stuck.write(&[0; 1 << 12]).is_ok() {}
            let (l_onoff, l_linger) = (1, 600);
            setsockopt(&stuck, sockopt::Linger, &libc::linger { l_onoff, l_linger }).unwrap();
            let stream = wire::connect(address);
            // As many as the kernel passes at once, the one that matters last.
            let mut passed = vec![input.as_fd(); 252];
            passed.push(stuck.as_fd());
            wire::send_with(&stream, &wire::hello_for(wire::SERVICE, &[0; 32]), &passed);
            (unread, stream)
        })
        .collect();
    report("ready");
    wait_for_test();
    drop(left);
}

/// Serves a filesystem with one file, `program`, which is this executable (fuse(4); linux/fuse.h). It runs in
/// a separate process, whose exit releases all requests that hang. On the test's command it answers only
/// reads, which the peer itself needs.
fn serve(mount_point: &Path) {
    const READ: u32 = 15;
    let content = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let text = |text: &str| CString::new(text).unwrap();
    let (source, target, options) = (
        text("ringfence-test"),
        text(mount_point.to_str().unwrap()),
        text(&options),
    );
    // SAFETY: the kernel reads five strings, all of which end with a NUL.
    let mounted = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            c"fuse".as_ptr(),
            libc::MS_NODEV,
            options.as_ptr().cast(),
        )
    };
    if mounted != 0 {
        report(format!("cannot: {}", std::io::Error::last_os_error()));
        return;
    }
    let silent = Arc::new(AtomicBool::new(false));
    let silent_flag = Arc::clone(&silent);
    thread::spawn(move || {
        wait_for_test();
        silent_flag.store(true, Ordering::SeqCst);
        report("silent");
    });
    report("mounted");
    let mut request = vec![0; 1 << 20];
    loop {
        let Ok(length) = device.read(&mut request) else {
            return;
        };
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        assert!(length >= 40);
        let (operation, unique, node) = (word(4), long(8), long(16));
        if silent.load(Ordering::SeqCst) && operation != READ {
            continue;
        }
        let (error, answer) = match operation {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => continue,
            // INIT
            26 => (0, init()),
            // LOOKUP
            1 if request[40..length].starts_with(b"program\0") => {
                // A node, its generation, and no time for which the kernel may cache the entry.
                let mut answer = [2_u64, 0, 0, 0, 0].map(u64::to_ne_bytes).concat();
                answer.extend(attributes(2, content.len()));
                (0, answer)
            }
            1 => (-libc::ENOENT, Vec::new()),
            // GETATTR
            3 => {
                let mut answer = vec![0; 16];
                answer.extend(attributes(node, content.len()));
                (0, answer)
            }
            // OPEN, OPENDIR: cached data stays valid.
            14 | 27 => (0, [0_u64, 2].map(u64::to_ne_bytes).concat()),
            READ => {
                let from = usize::try_from(long(48)).unwrap().min(content.len());
                let to = (from + word(56) as usize).min(content.len());
                (0, content[from..to].to_vec())
            }
            // RELEASE, FLUSH
            18 | 25 => (0, Vec::new()),
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let mut reply = Vec::new();
        reply.extend(u32::try_from(16 + answer.len()).unwrap().to_ne_bytes());
        reply.extend(error.to_ne_bytes());
        reply.extend(unique.to_ne_bytes());
        reply.extend(answer);
        // The kernel may have dropped the request in the meantime.
        let _ = device.write(&reply);
    }
}

/// fuse_init_out, of version 7.31.
fn init() -> Vec<u8> {
    let mut words = [0_u32; 16];
    words[0] = 7;
    words[1] = 31;
    // The longest readahead, and the longest write.
    words[2] = 1 << 17;
    words[5] = 1 << 17;
    words[6] = 1;
    words.map(u32::to_ne_bytes).concat()
}

/// fuse_attr: a directory, or a program.
fn attributes(node: u64, size: usize) -> Vec<u8> {
    let mode = if node == 1 {
        libc::S_IFDIR | 0o755
    } else {
        libc::S_IFREG | 0o755
    };
    let longs = [node, size as u64, (size as u64).div_ceil(512), 0, 0, 0];
    let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
    let mut bytes = longs.map(u64::to_ne_bytes).concat();
    bytes.extend(words.map(u32::to_ne_bytes).concat());
    bytes
}

/// Such a filesystem, mounted as long as this lives.
struct Filesystem {
    server: Actor,
    folder: tempfile::TempDir,
}

impl Filesystem {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let server = Actor::start("server", &[folder.path().to_str().unwrap()]);
        let reply = server.next_line();
        if reply != "mounted" {
            eprintln!("skipped: no filesystem of our own, {reply}");
            return None;
        }
        Some(Self { server, folder })
    }

    fn program(&self) -> PathBuf {
        self.folder.path().join("program")
    }

    fn stop_answering(&mut self) {
        self.server.proceed();
        self.server.expect("silent");
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        // All requests that hang there fail.
        self.server.kill();
        let path = CString::new(self.folder.path().to_str().unwrap()).unwrap();
        // SAFETY: the kernel reads one string.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Returns the refusal of a peer that was started from there, under this policy.
fn refused(policy: impl FnOnce(&Path) -> Policy) -> Option<Refused> {
    let mut filesystem = Filesystem::new()?;
    let (address, _keep) = fresh_address(false);
    let options: Options = small()
        .policy(policy(&filesystem.program()))
        .handshake_timeout(Duration::from_secs(1));
    let listener = listen(&address, &options).unwrap();
    let mut agent = Actor::start_from(filesystem.program(), "knock", &[&address.to_string()]);
    agent.expect("ready");
    filesystem.stop_answering();
    agent.proceed();
    let outcome = listener.accept().unwrap();
    // `close` does not wait for threads that hang.
    listener.close(Channels::Close);
    drop(agent);
    match outcome {
        Arrival::Refused(refused) => Some(refused),
        _ => panic!("the client was accepted"),
    }
}

/// Device and inode are known here, and nothing else is compared.
#[test]
fn other_file_is_refused_without_its_server() {
    let Some(refused) = refused(|_| Policy::new()) else {
        return;
    };
    let refusal = refused
        .error
        .refusal()
        .unwrap_or_else(|| panic!("{}", refused.error));
    assert_eq!(refusal.check.as_str(), "executable", "{refusal}");
    assert!(refusal.found.contains("program"), "{refusal}");
}

/// Its server would have to return the content.
#[test]
fn unreadable_content_times_out() {
    let digest = Digest::from([7; 32]);
    let Some(refused) = refused(|_| Policy::new().programs([Program::content(digest)])) else {
        return;
    };
    assert_eq!(refused.error.code(), "HANDSHAKE_TIMEOUT", "{}", refused.error);
}

/// Its server would have to resolve the name.
#[test]
fn unresolvable_path_times_out() {
    let Some(refused) = refused(|path| Policy::new().programs([Program::path(path)])) else {
        return;
    };
    assert_eq!(refused.error.code(), "HANDSHAKE_TIMEOUT", "{}", refused.error);
}

/// Neither a question about the file nor closing it may hold up the handshake.
#[test]
fn hung_file_in_place_of_line_or_object_is_refused() {
    for (role, check) in [("passes line", "line"), ("passes object", "kind")] {
        // Dropped after the filesystem, whose end releases its files.
        let mut guest;
        let Some(mut filesystem) = Filesystem::new() else {
            return;
        };
        let (address, _keep) = fresh_address(false);
        let listener = listen(&address, &small().policy(Policy::new().any_executable())).unwrap();
        let file = filesystem.program();
        guest = Actor::start(role, &[&address.to_string(), file.to_str().unwrap()]);
        guest.expect("ready");
        filesystem.stop_answering();
        guest.proceed();
        let refusal = guest.next_line();
        assert!(refusal.starts_with("4:") && refusal.contains(check), "{refusal}");
        assert!(matches!(listener.accept(), Ok(Arrival::Refused(_))));
        listener.close(Channels::Close);
        drop(filesystem);
        guest.finish();
    }
}

/// The kernel closes descriptors that were not received together with their socket, and those that a call has no room for within that call.
#[test]
fn socket_that_does_not_close_holds_up_no_client() {
    let own = geteuid().as_raw();
    for (uid, outcome) in [(own + 1, "PEER_REFUSED"), (own, "connected")] {
        let (address, _keep) = fresh_address(false);
        let address = address.to_string();
        let mut service = Actor::start("serves", &[&address, &uid.to_string()]);
        service.expect("ready");
        // So that all of them wait when it refuses the first.
        service.stop();
        let mut hostile = Actor::start("leaves sockets", &[&address]);
        hostile.expect("ready");
        service.resume();
        let mut client = Actor::start("knock", &[&address]);
        client.expect("ready");
        client.proceed();
        client.expect(outcome);
        client.finish();
        hostile.proceed();
        hostile.finish();
        service.proceed();
        service.finish();
    }
}

#[test]
fn kind_of_hung_file_is_known() {
    // Closed after the filesystem has ended.
    let file;
    let Some(mut filesystem) = Filesystem::new() else {
        return;
    };
    file = Arc::new(File::open(filesystem.program()).unwrap());
    filesystem.stop_answering();
    let (send, kind) = mpsc::channel();
    let asked = Arc::clone(&file);
    thread::spawn(move || send.send(ringfence::binding::file_type(&*asked)));
    assert_eq!(kind.recv_timeout(TIME_LIMIT).unwrap(), Ok(SFlag::S_IFREG));
}

#[test]
fn hung_file_in_place_of_lock_is_refused() {
    let mut host;
    let Some(mut filesystem) = Filesystem::new() else {
        return;
    };
    let (address, _keep) = fresh_address(true);
    let file = filesystem.program();
    host = Actor::start("passes lock", &[&address.to_string(), file.to_str().unwrap()]);
    host.expect("ready");
    filesystem.stop_answering();
    host.proceed();
    host.expect("listening");
    let guest = thread::spawn(move || member(&address, &small().policy(Policy::new().any_executable())));
    let refusal = host.next_line();
    assert!(
        refusal.starts_with("REFUSE") && refusal.contains("lock"),
        "{refusal}"
    );
    drop(filesystem);
    host.finish();
    let membership = guest.join().unwrap().unwrap();
    assert_eq!(membership.role(), Role::Host, "the guest has kept trying");
    membership.leave();
}
