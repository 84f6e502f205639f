//! How many messages may be on their way to us. AMQP 0-9-1 counts messages, memory counts bytes, and the client keeps all that
//! comes: so the count follows the sizes of late. Pure.
//!
//! It begins with as few as fit if all were of the largest size, and doubles as long as a whole window has shown smaller ones; it
//! shrinks at once.

use crate::config::Prefetch;

/// The largest message that a broker lets in, unless its operator allowed more: 16 MiB from 4.0 on, before that this.
const MESSAGE_BYTES_MAX: usize = 128 << 20;
/// The weight of one more message in the mean: one in so many.
const MEAN_OF: usize = 64;
/// By how much the largest message of late is forgotten with each one more.
const FORGOTTEN: usize = 1_024;

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Window {
    limit: Prefetch,
    /// Mean size of late, times [`MEAN_OF`]; none before the first message.
    mean: Option<usize>,
    largest: usize,
    /// Messages since the window was changed.
    seen: usize,
}

impl Window {
    pub(crate) const fn new(limit: Prefetch) -> Self {
        Self { limit, mean: None, largest: 0, seen: 0 }
    }

    /// The window to begin with, or to begin again with after another connection.
    pub(crate) fn first(&mut self) -> u16 {
        (self.mean, self.largest, self.seen) = (None, 0, 0);
        self.within(self.limit.bytes / MESSAGE_BYTES_MAX)
    }

    /// A message of this size came.
    pub(crate) fn observe(&mut self, bytes: usize) {
        let mean = self.mean.unwrap_or(bytes * MEAN_OF);
        self.mean = Some(mean - mean / MEAN_OF + bytes);
        self.largest = bytes.max(self.largest - self.largest / FORGOTTEN);
        self.seen += 1;
    }

    /// The window that it comes to, if messages stay as they are of late.
    pub(crate) fn wanted(&self) -> u16 {
        let Some(mean) = self.mean.map(|mean| (mean / MEAN_OF).max(1)) else { return self.limit.events };
        // All of one window: of usual ones half the bytes, so that a few large ones have room; of large ones four times as many.
        self.within((self.limit.bytes / (2 * mean)).min(4 * self.limit.bytes / self.largest.max(1)))
    }

    /// Another window than the current one, if it is time for that.
    pub(crate) fn change(&mut self, current: u16) -> Option<u16> {
        let wanted = self.wanted();
        let shrinks = wanted < current / 2;
        let grows = wanted > current && self.seen >= usize::from(current);
        if !shrinks && !grows {
            return None;
        }
        self.seen = 0;
        Some(wanted.min(current.saturating_mul(2)))
    }

    fn within(&self, messages: usize) -> u16 {
        u16::try_from(messages).unwrap_or(u16::MAX).clamp(1, self.limit.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// The windows that follow each other while messages of this size come.
    fn windows(window: &mut Window, mut current: u16, messages: usize, bytes: usize) -> Vec<u16> {
        let mut windows = Vec::new();
        for _ in 0..messages {
            window.observe(bytes);
            if let Some(next) = window.change(current) {
                windows.push(next);
                current = next;
            }
        }
        windows
    }

    #[test]
    fn the_window_doubles_while_messages_are_small() {
        let mut window = Window::new(Prefetch { events: 100, bytes: 128 * MIB });
        assert_eq!(window.first(), 1);
        assert_eq!(windows(&mut window, 1, 1_000, 100), [2, 4, 8, 16, 32, 64, 100]);
        assert_eq!(window.first(), 1);
        assert!(windows(&mut window, 8, 7, 100).is_empty());
    }

    #[test]
    fn it_shrinks_at_once_when_they_grow_and_comes_back_slowly() {
        let mut window = Window::new(Prefetch { events: 1_000, bytes: 128 * MIB });
        window.first();
        assert_eq!(windows(&mut window, 8, 5_000, 1_000).last(), Some(&1_000));
        let shrunk = windows(&mut window, 1_000, 3, 10 * MIB);
        assert!(shrunk[0] <= 51, "four windows of the largest: {shrunk:?}");
        let settled = windows(&mut window, shrunk[0], 500, 10 * MIB);
        assert!(settled.last().is_some_and(|window| *window <= 12), "a hundred and twenty-eight MiB hold so many: {settled:?}");
        let again = windows(&mut window, 6, 20_000, 1_000);
        assert_eq!(again.last(), Some(&1_000));
        assert!(again.windows(2).all(|pair| pair[1] <= 2 * pair[0]));
    }

    #[test]
    fn one_message_is_always_let_through() {
        let mut window = Window::new(Prefetch { events: 10, bytes: MIB });
        assert_eq!(window.first(), 1);
        assert!(windows(&mut window, 1, 50, 100 * MIB).is_empty());
    }
}
