//! Reports to the event loop that a line is readable.
//!
//! If the process has libuv (Node, Electron), a poll handle on the loop itself watches the line: one system
//! call from the wakeup to JavaScript. An asynchronous cleanup hook closes the handle when its environment
//! ends. The engine waits for that hook, so a worker thread can be terminated at any moment. Otherwise a
//! thread waits, and a thread-safe function carries the events. Bun and Deno export libuv's functions, but
//! Bun ends the process when they are called, and a poll handle in Deno calls back only once.

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int, c_void},
    mem, ptr,
    rc::Rc,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use napi::sys;

use crate::{raw::check, threadsafe::Threadsafe};

const UV_READABLE: c_int = 1;
const UV_DISCONNECT: c_int = 4;
/// `UV_POLL` in uv_handle_type: part of libuv's stable interface since 1.0.
const UV_POLL: c_int = 8;

type UvHandle = c_void;
type PollCallback = unsafe extern "C" fn(*mut UvHandle, c_int, c_int);
type CloseCallback = unsafe extern "C" fn(*mut UvHandle);

/// The functions of libuv that are used, resolved in this process.
#[derive(Clone, Copy)]
struct Libuv {
    handle_size: unsafe extern "C" fn(c_int) -> usize,
    poll_init: unsafe extern "C" fn(*mut c_void, *mut UvHandle, c_int) -> c_int,
    poll_start: unsafe extern "C" fn(*mut UvHandle, c_int, PollCallback) -> c_int,
    poll_stop: unsafe extern "C" fn(*mut UvHandle) -> c_int,
    close: unsafe extern "C" fn(*mut UvHandle, Option<CloseCallback>),
    set_data: unsafe extern "C" fn(*mut UvHandle, *mut c_void),
    get_data: unsafe extern "C" fn(*const UvHandle) -> *mut c_void,
    reference: unsafe extern "C" fn(*mut UvHandle),
    unreference: unsafe extern "C" fn(*mut UvHandle),
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: dlsym with RTLD_DEFAULT searches the loaded libraries and calls nothing.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr().cast::<c_char>()) };
    (!address.is_null()).then_some(address)
}

impl Libuv {
    /// Looked up once: the symbols of a process do not move.
    fn find() -> Option<Self> {
        static LIBUV: OnceLock<Option<Libuv>> = OnceLock::new();
        *LIBUV.get_or_init(Self::resolve)
    }

    fn resolve() -> Option<Self> {
        // SAFETY: each symbol is transmuted to the type that libuv's headers declare for it. Those have not
        // changed since libuv 1.19 (2018), and every supported Node is newer than that.
        unsafe {
            Some(Self {
                handle_size: mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int) -> usize>(symbol(
                    c"uv_handle_size",
                )?),
                poll_init: mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut c_void, *mut UvHandle, c_int) -> c_int,
                >(symbol(c"uv_poll_init")?),
                poll_start: mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut UvHandle, c_int, PollCallback) -> c_int,
                >(symbol(c"uv_poll_start")?),
                poll_stop: mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut UvHandle) -> c_int>(
                    symbol(c"uv_poll_stop")?,
                ),
                close: mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn(*mut UvHandle, Option<CloseCallback>),
                >(symbol(c"uv_close")?),
                set_data: mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut UvHandle, *mut c_void)>(
                    symbol(c"uv_handle_set_data")?,
                ),
                get_data: mem::transmute::<*mut c_void, unsafe extern "C" fn(*const UvHandle) -> *mut c_void>(
                    symbol(c"uv_handle_get_data")?,
                ),
                reference: mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut UvHandle)>(symbol(
                    c"uv_ref",
                )?),
                unreference: mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut UvHandle)>(symbol(
                    c"uv_unref",
                )?),
            })
        }
    }
}

/// Watches a descriptor and calls a JavaScript function, on the function's own thread, when the descriptor is
/// readable or has ended.
pub(crate) enum Poll {
    Loop(LoopPoll),
    Thread(ThreadPoll),
}

impl Poll {
    /// Starts to watch. The function is called without arguments, and must read all that is there. Keeps the
    /// event loop alive until [`Poll::keep_alive`].
    ///
    /// # Safety
    /// `env` is the environment that runs now, on this thread, and `callback` a live function of it. The
    /// descriptor stays open until the poll is dropped. Dropping it stops the watch: the function is not
    /// called again.
    pub(crate) unsafe fn start(
        env: sys::napi_env,
        descriptor: c_int,
        callback: sys::napi_value,
        use_libuv: bool,
    ) -> napi::Result<Self> {
        match Libuv::find().filter(|_| use_libuv) {
            // SAFETY: passed on from the caller.
            Some(libuv) => unsafe { LoopPoll::start(env, libuv, descriptor, callback) }.map(Self::Loop),
            // SAFETY: as above.
            None => unsafe { ThreadPoll::start(env, descriptor, callback) }.map(Self::Thread),
        }
    }

    /// Returns whether the function was called for a wakeup since the last call of this. If so, the line may
    /// be left unread: the event loop calls the function again soon, for no other reason. If the line has
    /// also ended, reading it reports that.
    pub(crate) fn take_wakeup(&self) -> bool {
        match self {
            Self::Loop(LoopPoll(poll)) => poll.woken.take(),
            // The thread would post a message to the event loop each time.
            Self::Thread(_) => false,
        }
    }

    /// Sets whether the watch keeps the event loop alive.
    pub(crate) fn keep_alive(&self, env: sys::napi_env, alive: bool) {
        match self {
            Self::Loop(poll) => poll.keep_alive(alive),
            Self::Thread(poll) => poll.keep_alive(env, alive),
        }
    }
}

pub(crate) struct LoopPoll(Rc<LoopState>);

impl Drop for LoopPoll {
    fn drop(&mut self) {
        self.0.stop();
    }
}

struct LoopState {
    libuv: Libuv,
    env: sys::napi_env,
    handle: Cell<*mut UvHandle>,
    size: usize,
    callback: Cell<sys::napi_ref>,
    context: Cell<sys::napi_async_context>,
    cleanup_hook: Cell<sys::napi_async_cleanup_hook_handle>,
    /// See [`Poll::take_wakeup`].
    woken: Cell<bool>,
}

impl LoopPoll {
    /// # Safety
    /// As [`Poll::start`].
    unsafe fn start(
        env: sys::napi_env,
        libuv: Libuv,
        descriptor: c_int,
        callback: sys::napi_value,
    ) -> napi::Result<Self> {
        let mut event_loop = ptr::null_mut();
        // SAFETY: env is live.
        let status = unsafe { sys::napi_get_uv_event_loop(env, &raw mut event_loop) };
        check(status, "finding the event loop")?;
        // SAFETY: uv_handle_size takes a constant.
        let size = unsafe { (libuv.handle_size)(UV_POLL) };
        let layout = handle_layout(size);
        // SAFETY: a poll handle is not empty.
        let handle = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<UvHandle>();
        if handle.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        // SAFETY: the loop is this thread's, the handle as large as libuv says, and the descriptor open.
        let status = unsafe { (libuv.poll_init)(event_loop.cast(), handle, descriptor) };
        if status != 0 {
            // SAFETY: libuv keeps no reference to the handle after a failed init.
            unsafe { std::alloc::dealloc(handle.cast(), layout) };
            return Err(napi::Error::from_reason(format!(
                "the event loop does not watch the line (libuv error {status})"
            )));
        }
        let poll = Rc::new(LoopState {
            libuv,
            env,
            handle: Cell::new(handle),
            size,
            callback: Cell::new(ptr::null_mut()),
            context: Cell::new(ptr::null_mut()),
            cleanup_hook: Cell::new(ptr::null_mut()),
            woken: Cell::new(false),
        });
        // The handle's own share of the state, released when libuv has closed the handle.
        // SAFETY: the handle is initialised.
        unsafe { (libuv.set_data)(handle, Rc::into_raw(Rc::clone(&poll)).cast_mut().cast()) };
        let poll = Self(poll);
        let (mut reference, mut context, mut cleanup_hook) =
            (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        // SAFETY: callback is a live function of env.
        let status = unsafe { sys::napi_create_reference(env, callback, 1, &raw mut reference) };
        check(status, "keeping the callback")?;
        poll.0.callback.set(reference);
        let mut name = ptr::null_mut();
        // SAFETY: env is live and the name's length is given.
        let status = unsafe { sys::napi_create_string_utf8(env, c"ringfence".as_ptr(), 9, &raw mut name) };
        check(status, "a name")?;
        // SAFETY: env is live; without a resource, the engine makes one.
        let status = unsafe { sys::napi_async_init(env, ptr::null_mut(), name, &raw mut context) };
        check(status, "an async context")?;
        poll.0.context.set(context);
        let data = Rc::as_ptr(&poll.0).cast_mut().cast();
        // SAFETY: the state outlives the hook: the handle's share of it is released after the hook is
        // removed.
        let status = unsafe {
            sys::napi_add_async_cleanup_hook(env, Some(on_environment_end), data, &raw mut cleanup_hook)
        };
        check(status, "a cleanup hook")?;
        poll.0.cleanup_hook.set(cleanup_hook);
        // SAFETY: the handle is initialised and not closing.
        let status = unsafe { (libuv.poll_start)(handle, UV_READABLE | UV_DISCONNECT, on_readable) };
        if status != 0 {
            return Err(napi::Error::from_reason(format!(
                "the event loop does not watch the line (libuv error {status})"
            )));
        }
        Ok(poll)
    }

    fn keep_alive(&self, alive: bool) {
        let LoopState { libuv, handle, .. } = &*self.0;
        if !handle.get().is_null() {
            // SAFETY: the handle is initialised and not closing (it is null from then on).
            unsafe {
                if alive {
                    (libuv.reference)(handle.get());
                } else {
                    (libuv.unreference)(handle.get());
                }
            }
        }
    }
}

/// libuv's handles hold pointers and integers.
fn handle_layout(size: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(size.max(1), 16).expect("the size of a libuv handle")
}

impl LoopState {
    fn stop(&self) {
        let handle = self.handle.replace(ptr::null_mut());
        if handle.is_null() {
            return;
        }
        // SAFETY: the handle is initialised and not closing; libuv calls back once it is done with it.
        unsafe { (self.libuv.poll_stop)(handle) };
        // SAFETY: as above.
        unsafe { (self.libuv.close)(handle, Some(on_closed)) };
    }
}

unsafe extern "C" fn on_readable(handle: *mut UvHandle, status: c_int, events: c_int) {
    let Some(libuv) = Libuv::find() else { return };
    // SAFETY: libuv passes the handle that was started, whose data was set to a share of the state.
    let poll = unsafe { (libuv.get_data)(handle) }
        .cast_const()
        .cast::<LoopState>();
    // SAFETY: one more share, so that the state outlives a stop from inside the callback.
    let poll = unsafe {
        Rc::increment_strong_count(poll);
        Rc::from_raw(poll)
    };
    // libuv calls exactly once more for a line that has failed.
    poll.woken.set(status >= 0 && events & UV_DISCONNECT == 0);
    let (env, mut scope) = (poll.env, ptr::null_mut());
    // SAFETY: libuv runs its callbacks on the loop's thread, which is the environment's, and the environment
    // ends only after this handle is closed.
    unsafe {
        if sys::napi_open_handle_scope(env, &raw mut scope) != sys::Status::napi_ok {
            return;
        }
        let (mut function, mut receiver, mut result) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
        if sys::napi_get_reference_value(env, poll.callback.get(), &raw mut function) == sys::Status::napi_ok
            && !function.is_null()
            && sys::napi_get_global(env, &raw mut receiver) == sys::Status::napi_ok
        {
            let status = sys::napi_make_callback(
                env,
                poll.context.get(),
                receiver,
                function,
                0,
                ptr::null(),
                &raw mut result,
            );
            if status == sys::Status::napi_pending_exception {
                let mut exception = ptr::null_mut();
                if sys::napi_get_and_clear_last_exception(env, &raw mut exception) == sys::Status::napi_ok {
                    // An exception in a callback of the event loop goes to the process's uncaught-exception
                    // handling.
                    sys::napi_fatal_exception(env, exception);
                }
            } else if status != sys::Status::napi_ok {
                // JavaScript can no longer run: the environment is about to end, and nothing reads the line.
                poll.stop();
            }
        }
        sys::napi_close_handle_scope(env, scope);
    }
}

/// Runs when the environment ends. The engine waits until the hook is removed, which happens once libuv has
/// closed the handle.
unsafe extern "C" fn on_environment_end(_hook: sys::napi_async_cleanup_hook_handle, data: *mut c_void) {
    // SAFETY: the data is the state, alive until `on_closed` releases the handle's share.
    unsafe { &*data.cast_const().cast::<LoopState>() }.stop();
}

unsafe extern "C" fn on_closed(handle: *mut UvHandle) {
    let Some(libuv) = Libuv::find() else { return };
    // SAFETY: the handle's data is its share of the state, released here, once.
    let poll = unsafe { Rc::from_raw((libuv.get_data)(handle).cast_const().cast::<LoopState>()) };
    // SAFETY: libuv is done with the handle, which was allocated with this layout.
    unsafe { std::alloc::dealloc(handle.cast(), handle_layout(poll.size)) };
    let (callback, context) = (
        poll.callback.replace(ptr::null_mut()),
        poll.context.replace(ptr::null_mut()),
    );
    // SAFETY: each was made in `start` by this environment, which still waits for the hook below (or goes
    // on).
    unsafe {
        if !callback.is_null() {
            sys::napi_delete_reference(poll.env, callback);
        }
        if !context.is_null() {
            sys::napi_async_destroy(poll.env, context);
        }
        let cleanup_hook = poll.cleanup_hook.replace(ptr::null_mut());
        if !cleanup_hook.is_null() {
            sys::napi_remove_async_cleanup_hook(cleanup_hook);
        }
    }
}

/// A thread that waits for the line, and a thread-safe function that carries the events.
pub(crate) struct ThreadPoll(Arc<ThreadState>);

struct ThreadState {
    threadsafe: Threadsafe,
    /// Ends the thread.
    cancel_token: ringfence::CancelToken,
    stopped: AtomicBool,
    /// The event was delivered and read: the thread may poll the line again.
    delivered: Mutex<bool>,
    changed: Condvar,
}

impl ThreadPoll {
    /// # Safety
    /// As [`Poll::start`].
    unsafe fn start(env: sys::napi_env, descriptor: c_int, callback: sys::napi_value) -> napi::Result<Self> {
        let failed = |what: &str| napi::Error::from_reason(format!("the line cannot be watched: {what}"));
        // SAFETY: the caller promises an open descriptor; the duplicate is the thread's own.
        let line = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) }
            .try_clone_to_owned()
            .map_err(|error| failed(&error.to_string()))?;
        let cancel_token = ringfence::CancelToken::new().map_err(|error| failed(&error.to_string()))?;
        let (mut name, mut function) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: env is live and the name's length is given.
        let status = unsafe { sys::napi_create_string_utf8(env, c"ringfence".as_ptr(), 9, &raw mut name) };
        check(status, "a name")?;
        let state = Arc::new(ThreadState {
            threadsafe: Threadsafe::default(),
            cancel_token,
            stopped: AtomicBool::new(false),
            delivered: Mutex::new(false),
            changed: Condvar::new(),
        });
        let share = Arc::into_raw(Arc::clone(&state)).cast_mut().cast();
        // SAFETY: env, callback and name are live. `finalize` releases the share of the state: the engine calls
        // it once, when it destroys the function. Without a function, the share is released below.
        let status = unsafe {
            sys::napi_create_threadsafe_function(
                env,
                callback,
                ptr::null_mut(),
                name,
                0,
                1,
                share,
                Some(finalize),
                ptr::null_mut(),
                Some(deliver),
                &raw mut function,
            )
        };
        if let Err(error) = check(status, "a thread-safe function") {
            // SAFETY: there is no function whose finalizer would release the share.
            drop(unsafe { Arc::from_raw(share.cast_const().cast::<ThreadState>()) });
            return Err(error);
        }
        state.threadsafe.set(function);
        let shared = Arc::clone(&state);
        thread::Builder::new()
            .name("ringfence-line".into())
            .spawn(move || shared.run(&line))
            .map_err(|error| {
                state.threadsafe.release();
                failed(&error.to_string())
            })?;
        Ok(Self(state))
    }

    fn keep_alive(&self, env: sys::napi_env, alive: bool) {
        self.0.threadsafe.keep_alive(env, alive);
    }
}

impl Drop for ThreadPoll {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl ThreadState {
    fn run(self: Arc<Self>, line: &std::os::fd::OwnedFd) {
        while ringfence::wait_readable(line, &self.cancel_token).is_ok()
            && !self.stopped.load(Ordering::Acquire)
        {
            let data = Arc::into_raw(Arc::clone(&self)).cast_mut().cast();
            if !self.threadsafe.send(data) {
                // SAFETY: it was not sent, so the share is still this thread's.
                drop(unsafe { Arc::from_raw(data.cast_const().cast::<Self>()) });
                break;
            }
            let mut delivered = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
            while !*delivered {
                delivered = self
                    .changed
                    .wait(delivered)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            *delivered = false;
        }
        self.threadsafe.release();
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.cancel_token.cancel();
        self.mark_delivered();
    }

    fn mark_delivered(&self) {
        *self.delivered.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

/// Runs when the thread-safe function is destroyed: the thread has released it, or the environment ends.
unsafe extern "C" fn finalize(_env: sys::napi_env, data: *mut c_void, _hint: *mut c_void) {
    // SAFETY: this is the share that `start` passed, and the engine calls this once.
    let state = unsafe { Arc::from_raw(data.cast_const().cast::<ThreadState>()) };
    state.threadsafe.forget();
    state.stop();
}

unsafe extern "C" fn deliver(
    env: sys::napi_env,
    callback: sys::napi_value,
    _context: *mut c_void,
    data: *mut c_void,
) {
    // SAFETY: this is the share that `run` queued. The engine delivers each share once, with a null env if
    // the environment is ending.
    let state = unsafe { Arc::from_raw(data.cast_const().cast::<ThreadState>()) };
    if !env.is_null() && !state.stopped.load(Ordering::Acquire) {
        let (mut receiver, mut result) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the engine calls on the environment's thread, inside a handle scope and a callback scope of
        // its own; an exception stays pending, and the engine reports it as uncaught.
        unsafe {
            sys::napi_get_global(env, &raw mut receiver);
            sys::napi_call_function(env, receiver, callback, 0, ptr::null(), &raw mut result);
        }
    }
    state.mark_delivered();
}
