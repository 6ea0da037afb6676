//! A bounded channel whose sender never waits: what does not fit is dropped and counted. For
//! messages that a later one repeats.

use prometheus::IntCounter;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver};

/// The sending end.
#[derive(Debug)]
pub(crate) struct Offers<T> {
    sender: mpsc::Sender<T>,
    dropped: IntCounter,
}

/// A channel for `most` items that wait to be received.
pub(crate) fn channel<T>(most: usize, dropped: IntCounter) -> (Offers<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel(most);
    (Offers { sender, dropped }, receiver)
}

impl<T> Offers<T> {
    /// Sends the item if there is room for it. A receiver that is gone wants nothing.
    pub(crate) fn offer(&self, item: T) {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(item) {
            self.dropped.inc();
        }
    }
}

impl<T> Clone for Offers<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            dropped: self.dropped.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let dropped = IntCounter::new("dropped", "test").unwrap();
        let (offers, mut received) = channel(1, dropped.clone());
        offers.offer(1);
        offers.offer(2);
        assert_eq!((received.try_recv(), dropped.get()), (Ok(1), 1));
        offers.offer(3);
        assert_eq!((received.try_recv(), dropped.get()), (Ok(3), 1));
        drop(received);
        offers.offer(4);
        assert_eq!(dropped.get(), 1, "nobody is there");
    }
}
