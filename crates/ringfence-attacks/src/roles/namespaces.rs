//! Mount namespaces with their own /dev/shm or /proc, and programs in them.

use std::{
    fs,
    io::stdin,
    os::{
        fd::AsFd,
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    process::Command,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, getgid, getuid, setgid, setgroups, setuid},
};

use crate::failed;

/// Mounts a small tmpfs on /dev/shm in its own mount namespace, and one with a copy of this program at each
/// of `places`. Keeps them until it reads a line or its input is closed.
pub(super) fn own_shm(bytes: &str, owner: &str, places: &[&str]) -> Result<(), String> {
    let (uid, gid) = (getuid(), getgid());
    if owner == "root" {
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed("a mount namespace"))?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).map_err(failed("a user namespace"))?;
        // All users keep their uids, because the checks compare uids.
        let write = |file: &str, text: String| {
            fs::write(format!("/proc/self/{file}"), text).map_err(|error| format!("{file}: {error}"))
        };
        write("setgroups", "deny".into())?;
        write("uid_map", format!("{uid} {uid} 1"))?;
        write("gid_map", format!("{gid} {gid} 1"))?;
    }
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(failed("making the mounts private"))?;
    let options = format!("mode=1777,size={bytes}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("tmpfs"),
        "/dev/shm",
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
    .map_err(failed("mounting"))?;
    let own = fs::read("/proc/self/exe").map_err(|error| error.to_string())?;
    for place in places {
        mount(
            Some("tmpfs"),
            *place,
            Some("tmpfs"),
            MsFlags::MS_NOSUID,
            Some("mode=755"),
        )
        .map_err(failed("mounting"))?;
        let program = format!("{place}/program");
        fs::write(&program, &own).map_err(|error| error.to_string())?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
            .map_err(|error| error.to_string())?;
    }
    println!("mounted");
    stdin().lines().next();
    Ok(())
}

/// Executes a program in a user namespace without any user mapping. Every uid there reads as the overflow uid
/// (user_namespaces(7)).
pub(super) fn unmapped(program: &str, args: &[&str]) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| format!("a user namespace: {errno}"))?;
    Err(Command::new(program).args(args).exec().to_string())
}

/// Executes a program, as `uid`, as the first process of a pid namespace. Processes outside of it have no pid
/// there (pid_namespaces(7)).
pub(super) fn own_pids(uid: &str, program: &str, args: &[&str]) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| format!("a pid namespace: {errno}"))?;
    let uid: u32 = super::number(uid)?;
    // The program inherits the streams, so that it receives the orders directly.
    let status = Command::new(program).args(args).uid(uid).gid(uid).status();
    status.map(drop).map_err(|error| error.to_string())
}

/// Executes a program, as `uid`, with a /proc that hides every process it may not inspect (`hidepid`,
/// proc(5)).
pub(super) fn hidden_proc(uid: &str, program: &str, args: &[&str]) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("a mount namespace"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(failed("making the mounts private"))?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        Some("hidepid=2"),
    )
    .map_err(failed("mounting /proc"))?;
    let uid: u32 = super::number(uid)?;
    Err(Command::new(program)
        .args(args)
        .uid(uid)
        .gid(uid)
        .exec()
        .to_string())
}

/// Enters the namespaces of `owner`, switches to `uid` (0 keeps the user), and executes `program`.
pub(super) fn within(owner: &str, uid: &str, program: &str, args: &[&str]) -> Result<(), String> {
    let enter = |name: &str, kind| {
        let file = fs::File::open(format!("/proc/{owner}/ns/{name}")).map_err(|error| error.to_string())?;
        setns(file.as_fd(), kind).map_err(failed("setns"))
    };
    let uid: u32 = super::number(uid)?;
    if uid == 0 {
        enter("user", CloneFlags::CLONE_NEWUSER)?;
    }
    enter("mnt", CloneFlags::CLONE_NEWNS)?;
    if uid != 0 {
        setgroups(&[]).map_err(failed("setgroups"))?;
        setgid(Gid::from_raw(uid)).map_err(failed("setgid"))?;
        setuid(Uid::from_raw(uid)).map_err(failed("setuid"))?;
    }
    Err(Command::new(program).args(args).exec().to_string())
}
