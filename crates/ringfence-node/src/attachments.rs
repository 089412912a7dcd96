//! Attachments of messages: sealed buffers and descriptors, as objects that the garbage collector frees.

#![expect(
    unreachable_pub,
    reason = "what is pub here is exported to JavaScript by its macro"
)]
#![expect(clippy::needless_pass_by_value, reason = "napi hands over owned lists")]

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd},
    sync::Arc,
};

use napi::{Env, bindgen_prelude::*, sys};
use napi_derive::napi;
use ringfence::{Attachment, AttachmentRef, SealedBuffer, binding};

use crate::{
    convert::{Failure, to_u64},
    raw::{detach, expose},
    task,
};

/// Bytes that JavaScript gets to see.
pub enum ExposedBytes {
    /// An external array buffer.
    Memory(sys::napi_value),
    /// The engine allows no external memory: JavaScript copies the bytes.
    Copy,
    Failed(Box<Failure>),
}

impl ToNapiValue for ExposedBytes {
    unsafe fn to_napi_value(env: sys::napi_env, exposed: Self) -> Result<sys::napi_value> {
        match exposed {
            Self::Memory(value) => Ok(value),
            // SAFETY: the caller guarantees env.
            Self::Copy => unsafe { Null::to_napi_value(env, Null) },
            // SAFETY: the caller guarantees env.
            Self::Failed(failure) => unsafe { Failure::to_napi_value(env, *failure) },
        }
    }
}

/// A sealed buffer. Closed by `close` or by the garbage collector.
#[napi]
pub struct SealedMemory {
    buffer: Option<Arc<SealedBuffer>>,
    size: f64,
}

impl From<SealedBuffer> for SealedMemory {
    fn from(buffer: SealedBuffer) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "sizes of memory are below 2^53")]
        let size = buffer.len() as f64;
        let buffer = Some(Arc::new(buffer));
        Self { buffer, size }
    }
}

#[napi]
impl SealedMemory {
    /// Number of bytes, also after `close`.
    #[napi(getter)]
    pub fn byte_length(&self) -> f64 {
        self.size
    }

    /// Maps the buffer as private memory. Null if the engine allows no external memory, or with `no_external`;
    /// `copy` then copies the bytes.
    #[napi(catch_unwind, ts_return_type = "ArrayBuffer | Failure | null")]
    pub fn bytes(&self, env: Env, no_external: bool) -> ExposedBytes {
        let Some(buffer) = &self.buffer else {
            return ExposedBytes::Failed(Box::new(closed()));
        };
        match binding::copy_on_write(buffer) {
            Ok(Some(mut map)) => {
                let (bytes, length) = (map.as_mut_ptr(), map.len());
                // SAFETY: the bytes stay mapped, at the same address, as long as the mapping, and nothing else uses
                // them.
                match unsafe { expose(env.raw(), bytes, length, map, no_external) } {
                    Some(value) => ExposedBytes::Memory(value),
                    None => ExposedBytes::Copy,
                }
            }
            Ok(None) => ExposedBytes::Copy,
            Err(error) => ExposedBytes::Failed(Box::new(Failure::from(&error))),
        }
    }

    /// Copies the bytes.
    #[napi(catch_unwind)]
    pub fn copy(&self, mut into: Uint8ArraySlice<'_>) -> Option<Failure> {
        let Some(buffer) = &self.buffer else {
            return Some(closed());
        };
        // SAFETY: no JavaScript runs during this call, and nothing else in it uses the array.
        let into = unsafe { into.as_mut() };
        let length = into.len().min(buffer.len());
        into[..length].copy_from_slice(&buffer[..length]);
        None
    }

    /// Closes the descriptor. Memory that JavaScript got stays mapped.
    #[napi]
    pub fn close(&mut self) {
        self.buffer = None;
    }
}

fn closed() -> Failure {
    Failure::from(&ringfence::Error::Closed("the sealed buffer is closed"))
}

/// Makes a sealed buffer with a copy of these bytes.
#[napi(catch_unwind)]
pub fn sealed_copy(bytes: &[u8]) -> Either<SealedMemory, Failure> {
    sealed(SealedBuffer::from_bytes(bytes))
}

fn sealed(made: ringfence::Result<SealedBuffer>) -> Either<SealedMemory, Failure> {
    match made {
        Ok(buffer) => Either::A(buffer.into()),
        Err(error) => Either::B(Failure::from(&error)),
    }
}

/// A buffer that is being filled. JavaScript calls `seal` or `abandon`, once.
#[napi]
pub struct SealedDraft {
    draft: Option<binding::Draft>,
}

/// Makes memory of `size` bytes on a thread, since the kernel has to clear it, and calls the callback with it. Returns why
/// there is no thread; the callback is not called then.
#[napi(
    catch_unwind,
    ts_args_type = "size: number, done: (failure: Failure | null, draft: SealedDraft | null) => void"
)]
pub fn sealed_draft(env: Env, size: f64, done: Unknown<'_>) -> Option<Failure> {
    let size = usize::try_from(to_u64(size)).unwrap_or(usize::MAX);
    // SAFETY: env runs this function, and the callback is its argument.
    let started = unsafe {
        task::run(
            env.raw(),
            done.raw(),
            "ringfence-draft",
            move || binding::Draft::new(size),
            |env, made| {
                task::result_arguments(env, made, |draft| {
                    let draft = Some(draft);
                    // SAFETY: this runs on the environment's thread, which is about to call the callback.
                    SealedDraft::to_napi_value(env, SealedDraft { draft })
                })
            },
            || {},
        )
    };
    let error = started.err()?;
    Some(Failure::from(&ringfence::Error::NoSpace {
        what: "making a sealed buffer".into(),
        reason: error.reason.clone(),
    }))
}

#[napi]
impl SealedDraft {
    /// Returns the memory, for JavaScript to fill; null if the engine allows no external memory, or if it is
    /// `no_external`.
    #[napi(catch_unwind, ts_return_type = "ArrayBuffer | null")]
    pub fn bytes(&mut self, env: Env, no_external: bool) -> ExposedBytes {
        let Some(draft) = &mut self.draft else {
            return ExposedBytes::Copy;
        };
        let (bytes, length) = (draft.bytes().as_mut_ptr(), draft.bytes().len());
        if length == 0 {
            return ExposedBytes::Copy;
        }
        // SAFETY: the handle keeps the bytes mapped. Rust accesses them only in `seal`.
        match unsafe { expose(env.raw(), bytes, length, draft.memory(), no_external) } {
            Some(value) => ExposedBytes::Memory(value),
            None => ExposedBytes::Copy,
        }
    }

    /// Copies the bytes if there are some, detaches the memory that JavaScript has filled, and seals the buffer.
    #[napi(catch_unwind, ts_args_type = "filled: ArrayBuffer, bytes: Uint8Array")]
    pub fn seal(&mut self, env: Env, filled: Unknown<'_>, bytes: &[u8]) -> Either<SealedMemory, Failure> {
        let Some(mut draft) = self.draft.take() else {
            return Either::B(closed());
        };
        let into = draft.bytes();
        let length = bytes.len().min(into.len());
        into[..length].copy_from_slice(&bytes[..length]);
        // SAFETY: env runs this function, and the value is its argument.
        unsafe { detach(env.raw(), filled.raw()) };
        sealed(draft.seal())
    }

    /// Frees the buffer. Memory that JavaScript got stays mapped: an operation of the program may still write to it.
    #[napi]
    pub fn abandon(&mut self) {
        self.draft = None;
    }
}

/// A received descriptor. Closed by `close` or by the garbage collector.
#[napi]
pub struct OwnDescriptor {
    descriptor: Option<OwnedFd>,
}

#[napi]
impl OwnDescriptor {
    /// Returns the number, or -1 once it is closed or taken.
    #[napi(getter)]
    pub fn number(&self) -> i32 {
        self.descriptor.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Returns the bits of the mode that tell the kind of object (`S_IFMT`), without a question to the server of its
    /// filesystem; 0 if they are not known.
    #[napi(getter)]
    pub fn file_type(&self) -> u32 {
        self.descriptor.as_ref().map_or(0, |descriptor| {
            binding::file_type(descriptor).map_or(0, |kind| kind.bits())
        })
    }

    /// Returns the number, which the caller then owns; -1 if it is closed or taken.
    #[napi]
    pub fn take(&mut self) -> i32 {
        self.descriptor.take().map_or(-1, IntoRawFd::into_raw_fd)
    }

    /// Closes the descriptor, on a thread: the server of its filesystem may be the peer, and never answer.
    #[napi]
    pub fn close(&mut self) {
        binding::discard(self.descriptor.take());
    }
}

impl Drop for OwnDescriptor {
    fn drop(&mut self) {
        self.close();
    }
}

/// Attachments of a message that is sent, or waits for it: descriptors of their own, so the program may close its own.
#[napi]
pub struct Bundle {
    items: Vec<Item>,
}

enum Item {
    Sealed(Arc<SealedBuffer>),
    Descriptor(OwnedFd),
}

impl Bundle {
    pub(crate) fn attachments(&self) -> Vec<AttachmentRef<'_>> {
        let items = self.items.iter().map(|item| match item {
            Item::Sealed(buffer) => AttachmentRef::from(&**buffer),
            Item::Descriptor(descriptor) => AttachmentRef::from(descriptor.as_fd()),
        });
        items.collect()
    }
}

#[napi]
impl Bundle {
    /// Closes the descriptors, on a thread: one that a peer has passed may belong to a filesystem that the peer serves.
    #[napi]
    pub fn close(&mut self) {
        binding::discard(self.items.drain(..).filter_map(|item| match item {
            Item::Sealed(_) => None,
            Item::Descriptor(descriptor) => Some(descriptor),
        }));
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.close();
    }
}

/// Collects sealed buffers and the numbers of descriptors, which are duplicated.
#[napi(catch_unwind)]
pub fn bundle(attachments: Vec<Either<ClassInstance<'_, SealedMemory>, i32>>) -> Either<Bundle, Failure> {
    let items: ringfence::Result<_> = attachments.iter().map(to_item).collect();
    match items {
        Ok(items) => Either::A(Bundle { items }),
        Err(error) => Either::B(Failure::from(&error)),
    }
}

fn to_item(attachment: &Either<ClassInstance<'_, SealedMemory>, i32>) -> ringfence::Result<Item> {
    match attachment {
        Either::A(sealed) => match &sealed.buffer {
            Some(buffer) => Ok(Item::Sealed(Arc::clone(buffer))),
            None => Err(ringfence::Error::InvalidArgument(
                "attachments: the sealed buffer is closed".into(),
            )),
        },
        Either::B(number) => duplicate(*number).map(Item::Descriptor),
    }
}

fn duplicate(number: i32) -> ringfence::Result<OwnedFd> {
    let closed = || format!("attachments: descriptor {number} is not open");
    if number < 0 {
        return Err(ringfence::Error::InvalidArgument(closed()));
    }
    // SAFETY: used in this call only. A number that is not open fails.
    let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
    descriptor
        .try_clone_to_owned()
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EBADF) => ringfence::Error::InvalidArgument(closed()),
            _ => ringfence::Error::NoSpace {
                what: "a copy of an attached descriptor".into(),
                reason: error.to_string(),
            },
        })
}

/// A received attachment, as JavaScript gets it. `None` if it is of a kind that JavaScript cannot ask for.
pub(crate) fn received(attachment: Attachment) -> Option<Either<SealedMemory, OwnDescriptor>> {
    match attachment {
        Attachment::Sealed(buffer) => Some(Either::A(buffer.into())),
        Attachment::Descriptor(descriptor) => {
            let descriptor = Some(descriptor);
            Some(Either::B(OwnDescriptor { descriptor }))
        }
        _ => None,
    }
}
