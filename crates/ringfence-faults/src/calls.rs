//! System calls that can be made to fail, by their names in the table. A call that does several things has
//! one row for each.

use libc::{c_int, c_long};

/// A row of the table.
pub(crate) struct Call {
    /// The call's name as in its manual page, with the operation in brackets.
    pub(crate) name: &'static str,
    /// Number of the call on this processor.
    pub(crate) number: c_long,
    /// Returns whether a call with this number belongs to this row, by its arguments.
    pub(crate) covers: fn(&[u64; 6]) -> bool,
}

/// The harness reports its findings over the first three descriptors, so calls on them are left out.
const fn is_not_stdio(arguments: &[u64; 6]) -> bool {
    arguments[0] > 2
}

const fn any(_: &[u64; 6]) -> bool {
    true
}

const fn is_file(arguments: &[u64; 6]) -> bool {
    arguments[3] & libc::MAP_ANONYMOUS as u64 == 0
}

/// The standard library's own calls are left out. They pass `GRND_INSECURE` or `GRND_NONBLOCK`, and a failure
/// panics.
const fn has_no_flags(arguments: &[u64; 6]) -> bool {
    arguments[2] == 0
}

/// A thread's stack as the C library maps it. The standard library maps another stack, for overflows, when a
/// thread starts; the process ends if that fails.
const fn is_stack(arguments: &[u64; 6]) -> bool {
    arguments[3] & libc::MAP_STACK as u64 != 0 && arguments[2] == libc::PROT_NONE as u64
}

/// The guard page of that overflow stack is left out.
const fn is_accessible(arguments: &[u64; 6]) -> bool {
    arguments[2] != libc::PROT_NONE as u64
}

const fn has_command<const COMMAND: c_int>(arguments: &[u64; 6]) -> bool {
    arguments[1] as c_int == COMMAND
}

const fn has_operation<const COMMAND: c_int>(arguments: &[u64; 6]) -> bool {
    arguments[0] as c_int == COMMAND
}

const fn has_option<const OPTION: c_int>(arguments: &[u64; 6]) -> bool {
    arguments[2] as c_int == OPTION
}

/// The open of a file that the policy names. Directories are opened with the same flags and left out.
const fn is_path(arguments: &[u64; 6]) -> bool {
    let flags = arguments[2] as c_int;
    flags & libc::O_PATH != 0 && flags & libc::O_DIRECTORY == 0
}

/// The open of a process's groups and ids in /proc, by the file name. A check rests on this file alone, so it
/// fails alone.
fn is_status(arguments: &[u64; 6]) -> bool {
    const NAME: &[u8] = b"status\0";
    let path = arguments[1] as *const u8;
    NAME.iter().enumerate().all(|(at, expected)| {
        // SAFETY: the caller is a waiting thread of this process that passed a string with a final zero. Each
        // byte is read only if all bytes before it matched the name, so the read stops at that zero.
        !path.is_null() && unsafe { path.add(at).read() } == *expected
    })
}

/// The message of a wakeup, which has no control data. A handshake's frame has some.
fn is_wakeup(arguments: &[u64; 6]) -> bool {
    let header = arguments[1] as *const libc::msghdr;
    // SAFETY: the caller is a waiting thread of this process that passed a header.
    !header.is_null() && unsafe { (*header).msg_controllen } == 0
}

macro_rules! calls {
    ($($name:literal $number:ident $covers:expr;)*) => {
        &[$(Call { name: $name, number: libc::$number, covers: $covers },)*]
    };
}

/// Every system call that the crate makes, itself or through the standard library.
pub(crate) const CALLS: &[Call] = calls! {
    "accept4" SYS_accept4 any;
    "bind" SYS_bind any;
    "clone" SYS_clone any;
    "clone3" SYS_clone3 any;
    "close" SYS_close is_not_stdio;
    "connect" SYS_connect any;
    "dup" SYS_dup any;
    "epoll_create1" SYS_epoll_create1 any;
    "epoll_ctl" SYS_epoll_ctl any;
    "epoll_pwait2" SYS_epoll_pwait2 any;
    "eventfd2" SYS_eventfd2 any;
    "fadvise64" SYS_fadvise64 any;
    "fallocate" SYS_fallocate any;
    "fchmod" SYS_fchmod any;
    "fchmodat" SYS_fchmodat any;
    "fchown" SYS_fchown any;
    "fcntl(F_ADD_SEALS)" SYS_fcntl has_command::<{ libc::F_ADD_SEALS }>;
    "fcntl(F_DUPFD_CLOEXEC)" SYS_fcntl has_command::<{ libc::F_DUPFD_CLOEXEC }>;
    "fcntl(F_GETFD)" SYS_fcntl has_command::<{ libc::F_GETFD }>;
    "fcntl(F_GETFL)" SYS_fcntl has_command::<{ libc::F_GETFL }>;
    "fcntl(F_GETLEASE)" SYS_fcntl has_command::<{ libc::F_GETLEASE }>;
    "fcntl(F_GET_SEALS)" SYS_fcntl has_command::<{ libc::F_GET_SEALS }>;
    "fcntl(F_OFD_SETLK)" SYS_fcntl has_command::<{ libc::F_OFD_SETLK }>;
    "fcntl(F_OFD_SETLKW)" SYS_fcntl has_command::<{ libc::F_OFD_SETLKW }>;
    "fcntl(F_SETFD)" SYS_fcntl has_command::<{ libc::F_SETFD }>;
    "fcntl(F_SETFL)" SYS_fcntl has_command::<{ libc::F_SETFL }>;
    "fcntl(F_SETLEASE)" SYS_fcntl has_command::<{ libc::F_SETLEASE }>;
    // libc does not define these for every C library.
    "fcntl(F_SETOWN_EX)" SYS_fcntl has_command::<15>;
    "fcntl(F_SETSIG)" SYS_fcntl has_command::<10>;
    "flock" SYS_flock any;
    "fstat" SYS_fstat any;
    "fstatfs" SYS_fstatfs any;
    "ftruncate" SYS_ftruncate any;
    "getcwd" SYS_getcwd any;
    "getdents64" SYS_getdents64 any;
    "getpeername" SYS_getpeername any;
    "getrandom" SYS_getrandom has_no_flags;
    "getsockname" SYS_getsockname any;
    "getsockopt(SO_PEERCRED)" SYS_getsockopt has_option::<{ libc::SO_PEERCRED }>;
    "getsockopt(SO_PEERGROUPS)" SYS_getsockopt has_option::<59>;
    "getsockopt(SO_PEERPIDFD)" SYS_getsockopt has_option::<77>;
    "getsockopt(SO_PEERSEC)" SYS_getsockopt has_option::<{ libc::SO_PEERSEC }>;
    "getsockopt(SO_ERROR)" SYS_getsockopt has_option::<{ libc::SO_ERROR }>;
    "getsockopt(SO_TYPE)" SYS_getsockopt has_option::<{ libc::SO_TYPE }>;
    "getsockopt(SO_DOMAIN)" SYS_getsockopt has_option::<{ libc::SO_DOMAIN }>;
    "getsockopt(SO_ACCEPTCONN)" SYS_getsockopt has_option::<{ libc::SO_ACCEPTCONN }>;
    "ioctl" SYS_ioctl any;
    "kcmp" SYS_kcmp any;
    "linkat" SYS_linkat any;
    "listen" SYS_listen any;
    "lseek" SYS_lseek any;
    "madvise" SYS_madvise any;
    "membarrier" SYS_membarrier any;
    "memfd_create" SYS_memfd_create any;
    "mmap(file)" SYS_mmap is_file;
    "mmap(stack)" SYS_mmap is_stack;
    "mprotect" SYS_mprotect is_accessible;
    "munmap" SYS_munmap any;
    "newfstatat" SYS_newfstatat any;
    "openat(status)" SYS_openat is_status;
    "openat(O_PATH)" SYS_openat is_path;
    "openat" SYS_openat any;
    "pidfd_getfd" SYS_pidfd_getfd any;
    "pidfd_open" SYS_pidfd_open any;
    "pidfd_send_signal" SYS_pidfd_send_signal any;
    "pipe2" SYS_pipe2 any;
    "ppoll" SYS_ppoll any;
    "prctl(PR_GET_DUMPABLE)" SYS_prctl has_operation::<{ libc::PR_GET_DUMPABLE }>;
    "prctl(PR_SET_DUMPABLE)" SYS_prctl has_operation::<{ libc::PR_SET_DUMPABLE }>;
    "pread64" SYS_pread64 any;
    "prlimit64" SYS_prlimit64 any;
    "pwrite64" SYS_pwrite64 any;
    "read" SYS_read is_not_stdio;
    "readlinkat" SYS_readlinkat any;
    "recvfrom" SYS_recvfrom any;
    "recvmsg(wakeup)" SYS_recvmsg is_wakeup;
    "recvmsg" SYS_recvmsg any;
    "renameat" SYS_renameat any;
    "rt_sigaction" SYS_rt_sigaction any;
    "rt_sigprocmask" SYS_rt_sigprocmask any;
    "rt_sigqueueinfo" SYS_rt_sigqueueinfo any;
    "rt_sigtimedwait" SYS_rt_sigtimedwait any;
    "rt_tgsigqueueinfo" SYS_rt_tgsigqueueinfo any;
    "sendmsg(wakeup)" SYS_sendmsg is_wakeup;
    "sendmsg" SYS_sendmsg any;
    "setsockopt" SYS_setsockopt any;
    "shutdown" SYS_shutdown any;
    "socket" SYS_socket any;
    "socketpair" SYS_socketpair any;
    "statx" SYS_statx any;
    "tgkill" SYS_tgkill any;
    "unlinkat" SYS_unlinkat any;
    "vfork" SYS_vfork any;
    "wait4" SYS_wait4 any;
    "waitid" SYS_waitid any;
    "write" SYS_write is_not_stdio;
    "access" SYS_access any;
    "chmod" SYS_chmod any;
    "epoll_wait" SYS_epoll_wait any;
    "kill" SYS_kill any;
    "link" SYS_link any;
    "lstat" SYS_lstat any;
    "open" SYS_open any;
    "poll" SYS_poll any;
    "readlink" SYS_readlink any;
    "rename" SYS_rename any;
    "stat" SYS_stat any;
    "unlink" SYS_unlink any;
};

/// Calls that are never made to fail, each with the reason.
pub(crate) const EXEMPT: &[(&str, c_long, &str)] = &[
    (
        "futex",
        libc::SYS_futex,
        "used by the standard library's locks, which expect no errors",
    ),
    (
        "brk",
        libc::SYS_brk,
        "used by the allocator; a Rust program aborts without memory, whatever asked for it",
    ),
    (
        "mmap(anonymous)",
        libc::SYS_mmap,
        "used by the allocator, likewise",
    ),
    ("mremap", libc::SYS_mremap, "used by the allocator, likewise"),
    ("sched_yield", libc::SYS_sched_yield, "has no errors"),
    ("gettid", libc::SYS_gettid, "has no errors"),
    ("getpid", libc::SYS_getpid, "has no errors"),
    ("getuid", libc::SYS_getuid, "has no errors"),
    ("geteuid", libc::SYS_geteuid, "has no errors"),
    ("getgid", libc::SYS_getgid, "has no errors"),
    ("getegid", libc::SYS_getegid, "has no errors"),
    ("getppid", libc::SYS_getppid, "has no errors"),
    (
        "clock_gettime",
        libc::SYS_clock_gettime,
        "has no errors for these clocks",
    ),
    (
        "clock_nanosleep",
        libc::SYS_clock_nanosleep,
        "used by the standard library's sleep, which retries it",
    ),
    ("nanosleep", libc::SYS_nanosleep, "likewise"),
    ("exit", libc::SYS_exit, "does not return"),
    ("exit_group", libc::SYS_exit_group, "does not return"),
    ("rt_sigreturn", libc::SYS_rt_sigreturn, "does not return"),
    (
        "rseq",
        libc::SYS_rseq,
        "used by the C library when a thread starts",
    ),
    ("set_robust_list", libc::SYS_set_robust_list, "likewise"),
    (
        "sigaltstack",
        libc::SYS_sigaltstack,
        "used by the standard library when a thread starts; it panics on failure",
    ),
    (
        "prctl(PR_SET_NAME)",
        libc::SYS_prctl,
        "sets a thread's name, on which nothing depends",
    ),
    (
        "sched_getaffinity",
        libc::SYS_sched_getaffinity,
        "used by the C library to find a thread's stack",
    ),
    (
        "restart_syscall",
        libc::SYS_restart_syscall,
        "made by the kernel after a stop",
    ),
    (
        "execve",
        libc::SYS_execve,
        "made by a child between fork and exec, which is not tested",
    ),
];

/// Returns the row of a call of this process. It allocates nothing, because the caller may hold the
/// allocator's lock.
pub(crate) fn row_of(number: c_long, arguments: &[u64; 6]) -> Option<usize> {
    let matches = |call: &Call| call.number == number && (call.covers)(arguments);
    CALLS.iter().position(matches)
}

/// Returns whether a call with this number is neither in `CALLS` nor in `EXEMPT`.
pub(crate) fn is_unknown(number: c_long) -> bool {
    let has_row = CALLS.iter().any(|call| call.number == number);
    !has_row && EXEMPT.iter().all(|&(_, other, _)| other != number)
}

/// Errors of the table.
pub(crate) const ERRORS: &[(&str, c_int)] = &[
    ("EINTR", libc::EINTR),
    ("EMFILE", libc::EMFILE),
    ("ENOMEM", libc::ENOMEM),
    ("EIO", libc::EIO),
    ("EAGAIN", libc::EAGAIN),
    ("EACCES", libc::EACCES),
    // No error: the call is made 50 ms later.
    ("delay", 0),
];
