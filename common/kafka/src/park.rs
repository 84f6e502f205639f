//! Waiting for a future on a thread that has no runtime.
//! Never: used on a thread that runs tasks.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::Duration;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits until the future is ready.
pub(crate) fn wait_for<F: Future>(future: F) -> F::Output {
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        thread::park();
    }
}

/// Waits once, for at most `longest` or until somebody unparks the thread; the future may still not be ready then.
pub(crate) fn wait_once<F: Future>(future: F, longest: Duration) -> Option<F::Output> {
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    for waited in [false, true] {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        if !waited {
            thread::park_timeout(longest);
        }
    }
    None
}
