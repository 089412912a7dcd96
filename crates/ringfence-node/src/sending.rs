//! Sends by a channel or a publisher: operations on the hot path, which answer with numbers.

use std::ptr;

use napi::{bindgen_prelude::*, sys};
use ringfence::{
    AttachmentRef, Outbound, Progress,
    binding::{AnyOutlet, Reserved, Tag},
};

use crate::{
    answers::WHOLE,
    attachments::Bundle,
    handle::Object,
    raw::{Answer, Call, detach, expose},
};

/// Up to this size, a copy at commit is cheaper than external memory, which the engine has to track.
const MAX_COPIED_SIZE: usize = 4096;

/// The reservation of a writer. A writer has at most one.
pub(crate) struct Reservation {
    reserved: Option<Reserved>,
    /// The array buffer that exposes the reserved memory to JavaScript, kept so that it can be detached.
    array_buffer: sys::napi_ref,
}

impl Reservation {
    pub(crate) const NONE: Self = Self {
        reserved: None,
        array_buffer: ptr::null_mut(),
    };

    /// Detaches the reservation's array buffer. The region stays mapped until the buffer's finalizer has run.
    fn detach_buffer(&mut self, env: sys::napi_env) {
        let array_buffer = std::mem::replace(&mut self.array_buffer, ptr::null_mut());
        if array_buffer.is_null() {
            return;
        }
        let mut buffer = ptr::null_mut();
        // SAFETY: the reference was made in `reserve`, by this environment, and is deleted once, here.
        unsafe {
            if sys::napi_get_reference_value(env, array_buffer, &raw mut buffer) == sys::Status::napi_ok
                && !buffer.is_null()
            {
                detach(env, buffer);
            }
            sys::napi_delete_reference(env, array_buffer);
        }
    }
}

/// An object that JavaScript sends through.
pub(crate) trait SendEndpoint: Object {
    type Ring: AnyOutlet;

    fn sender(&mut self) -> ringfence::Result<&mut Outbound<Self::Ring>>;
    fn reservation(&mut self) -> &mut Reservation;
}

/// Cancels an open reservation.
pub(crate) fn cancel_open<S: SendEndpoint>(endpoint: &mut S, env: sys::napi_env) {
    let reserved = endpoint.reservation().reserved.take();
    if let (Some(reserved), Ok(sender)) = (reserved, endpoint.sender()) {
        // If the channel has ended, there is no reservation to release.
        let _ = sender.cancel(reserved);
    }
    endpoint.reservation().detach_buffer(env);
}

pub(crate) fn flush<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let arena = unsafe { call.bytes(0) };
    let range = call.size(1)..call.size(2);
    let Some(packed) = arena.get(range) else {
        return Answer::from(0);
    };
    let flushed = endpoint
        .sender()
        .and_then(|sender| sender.try_send_packed(packed));
    endpoint.answer(flushed)
}

/// Arguments: the message, the bytes of it that are in the ring, and the flags of its tag.
pub(crate) fn send<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let message = unsafe { call.bytes(0) };
    let tag = Tag::of(u32::try_from(call.size(2)).unwrap_or(0));
    let sent = endpoint
        .sender()
        .and_then(|sender| sender.send_part_tagged(message, tag, call.size(1).min(message.len())));
    progress_answer(endpoint, sent)
}

#[inline]
pub(crate) fn progress_answer<S: SendEndpoint>(
    endpoint: &mut S,
    sent: ringfence::Result<Progress>,
) -> Answer {
    match sent {
        Ok(Progress::Whole) => Answer::from(WHOLE),
        Ok(Progress::Part(bytes)) => Answer::from(bytes),
        Err(error) => endpoint.fail(error),
    }
}

/// Calls a function with the attachments in an argument of the call.
pub(crate) fn with_bundle<T>(
    call: &Call,
    index: usize,
    then: impl FnOnce(&[AttachmentRef<'_>]) -> ringfence::Result<T>,
) -> ringfence::Result<T> {
    // SAFETY: the value is an argument of this call.
    match unsafe { ClassInstance::<'_, Bundle>::from_napi_value(call.env, call.value(index)) } {
        Ok(bundle) => then(&bundle.attachments()),
        Err(_) => Err(ringfence::Error::InvalidArgument("no attachments".into())),
    }
}

pub(crate) fn try_send<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    // SAFETY: the slice is used within this call only, and requested once.
    let message = unsafe { call.bytes(0) };
    let sent = endpoint
        .sender()
        .and_then(|sender| sender.try_send(message))
        .map(i32::from);
    endpoint.answer(sent)
}

pub(crate) fn has_room<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    let room = endpoint
        .sender()
        .and_then(|sender| sender.has_room(call.size(0)))
        .map(i32::from);
    endpoint.answer(room)
}

/// Argument: the size of the longest message among those to be flushed.
pub(crate) fn packed_room<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    let room = endpoint
        .sender()
        .and_then(|sender| sender.packed_room(call.size(0)));
    endpoint.answer(room)
}

pub(crate) fn arm_writer<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    let armed = endpoint
        .sender()
        .and_then(|sender| sender.arm(call.size(0)))
        .map(i32::from);
    endpoint.answer(armed)
}

/// Arguments: the size, and 1 to always use memory owned by JavaScript.
pub(crate) fn reserve<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    let mut reserved = match endpoint
        .sender()
        .and_then(|sender| sender.reserve_detached(call.size(0)))
    {
        Ok(Some(reserved)) => reserved,
        Ok(None) => return Answer::from(0),
        Err(error) => return endpoint.fail(error),
    };
    let view = if reserved.size() > MAX_COPIED_SIZE {
        expose_reserved(call.env, &mut reserved, call.size(1) != 0)
    } else {
        None
    };
    endpoint.reservation().reserved = Some(reserved);
    match view {
        Some((value, array_buffer)) => {
            endpoint.reservation().array_buffer = array_buffer;
            Answer::Value(value)
        }
        // JavaScript fills memory of its own, and commit copies it.
        None => Answer::from(1),
    }
}

/// Exposes the reserved bytes to JavaScript as an external array buffer. `None` if the engine does not allow
/// external memory (Electron), or with `no_external`.
fn expose_reserved(
    env: sys::napi_env,
    reserved: &mut Reserved,
    no_external: bool,
) -> Option<(sys::napi_value, sys::napi_ref)> {
    let owner = reserved.keeper();
    let bytes = reserved.bytes();
    let (bytes, length) = (bytes.as_mut_ptr(), bytes.len());
    // SAFETY: the keeper keeps the bytes mapped. `Reserved::bytes` is borrowed anew on each use.
    let value = unsafe { expose(env, bytes, length, owner, no_external) }?;
    let mut reference = ptr::null_mut();
    // SAFETY: value is a live value of env.
    let status = unsafe { sys::napi_create_reference(env, value, 1, &raw mut reference) };
    (status == sys::Status::napi_ok).then_some((value, reference))
}

/// Arguments: the length, and the scratch memory if the reservation has no view.
pub(crate) fn commit<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    let length = call.size(0);
    let Some(mut reserved) = endpoint.reservation().reserved.take() else {
        return endpoint.fail(ringfence::Error::InvalidArgument(
            "the reservation is not open any more".into(),
        ));
    };
    if length > reserved.size() {
        let what = format!("{length} bytes committed of a reservation of {}", reserved.size());
        endpoint.reservation().reserved = Some(reserved);
        return endpoint.fail(ringfence::Error::InvalidArgument(what));
    }
    if endpoint.reservation().array_buffer.is_null() {
        // SAFETY: the slice is used within this call only, and requested once.
        let scratch = unsafe { call.bytes(1) };
        let Some(bytes) = scratch.get(..length) else {
            endpoint.reservation().reserved = Some(reserved);
            cancel_open(endpoint, call.env);
            let what = "the reservation's bytes were taken away (transferred)";
            return endpoint.fail(ringfence::Error::InvalidArgument(what.into()));
        };
        reserved.bytes()[..length].copy_from_slice(bytes);
    }
    endpoint.reservation().detach_buffer(call.env);
    let committed = endpoint
        .sender()
        .and_then(|sender| sender.commit(reserved, length))
        .map(|()| 0_i32);
    endpoint.answer(committed)
}

pub(crate) fn cancel<S: SendEndpoint>(endpoint: &mut S, call: &mut Call) -> Answer {
    cancel_open(endpoint, call.env);
    Answer::Nothing
}
