//! A malicious peer of the plain program. It follows no protocol, and keeps what an honest peer would close.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    fcntl::OFlag,
    sys::{
        memfd::{MFdFlags, memfd_create},
        socket::accept,
    },
    unistd::{ftruncate, pipe2},
};

use super::{number, serve};
use crate::{failed, mapping::Mapping, socket};

/// Connects, receives the object, and then executes orders about it.
pub(super) fn guest(address: &str) -> Result<(), String> {
    let line = socket::connect_to(address).map_err(failed("connect"))?;
    let mut parcel = socket::receive_exactly(line.as_fd(), size_of::<usize>()).map_err(failed("receive"))?;
    let size: [u8; 8] = parcel.bytes.try_into().map_err(|_| "no size was passed")?;
    let size = usize::from_ne_bytes(size);
    let object = parcel.descriptors.pop().ok_or("no descriptor was passed")?;
    println!("holding {size}");
    manipulate(&object, size)
}

/// Maps an object and executes orders about it.
pub(super) fn manipulate(object: &OwnedFd, size: usize) -> Result<(), String> {
    let map = Mapping::new(object, size, true).map_err(failed("mmap"))?;
    serve(|order| {
        Ok(match order {
            ["find", text] => if map.find(text.as_bytes()).is_some() {
                "found"
            } else {
                "absent"
            }
            .into(),
            ["store", at, value] => {
                map.store(number(at)?, number(value)?);
                "stored".into()
            }
            ["load", at] => map.load(number(at)?).to_string(),
            ["write", at, text] => {
                map.write(number(at)?, text.as_bytes());
                "written".into()
            }
            ["truncate"] => match ftruncate(object, 0) {
                Ok(()) => "truncated".into(),
                Err(errno) => format!("{errno:?}"),
            },
            other => return Err(format!("no such order: {other:?}")),
        })
    })
}

/// Listens, and passes what `kind` names to the client that connects.
pub(super) fn host(address: &str, kind: &str) -> Result<(), String> {
    let listener = socket::listen_at(address).map_err(failed("listen"))?;
    println!("listening");
    let connection = accept(&listener).map_err(failed("accept"))?;
    let size: usize = 64 * 1024;
    let memory = |bytes: i64| -> Result<OwnedFd, String> {
        let memory = memfd_create("hostile", MFdFlags::MFD_CLOEXEC).map_err(failed("memfd"))?;
        ftruncate(&memory, bytes).map_err(failed("ftruncate"))?;
        Ok(memory)
    };
    let whole = size.to_ne_bytes();
    let mut bytes: &[u8] = &whole;
    let mut objects = Vec::new();
    match kind {
        "directory" => objects.push(File::open("/").map_err(|error| error.to_string())?.into()),
        "pipe" => objects.push(pipe2(OFlag::O_CLOEXEC).map_err(failed("pipe"))?.0),
        "unsealed" => objects.push(memory(64 * 1024)?),
        "short" => objects.push(memory(0)?),
        "two" => objects.extend([memory(64 * 1024)?, memory(64 * 1024)?]),
        "none" => {}
        "half" => {
            objects.push(memory(64 * 1024)?);
            bytes = &whole[..3];
        }
        other => return Err(format!("no such object: {other}")),
    }
    let borrowed: Vec<_> = objects.iter().map(AsFd::as_fd).collect();
    socket::send(connection.as_fd(), bytes, &borrowed, None).map_err(failed("send"))?;
    println!("passed");
    let Some(object) = objects.first().filter(|_| matches!(kind, "unsealed")) else {
        return serve(|_| Ok("nothing".into()));
    };
    manipulate(object, size)
}
