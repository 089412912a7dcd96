//! Whether the figures of a call's state agree.

use super::State;

#[cfg(all(test, feature = "tokio"))]
impl State {
    pub(crate) fn count_waits(&self) -> usize {
        self.waits.len()
    }
}

impl State {
    /// Panics if the figures do not agree.
    pub(crate) fn check(&self) {
        let sum = |sizes: &mut dyn Iterator<Item = usize>| sizes.sum::<usize>();
        assert_eq!(
            sum(&mut self.sent.values().map(|sent| sent.size)),
            self.sent_bytes
        );
        assert_eq!(
            sum(&mut self.open.values().map(|open| open.size)),
            self.open_bytes
        );
        assert_eq!(sum(&mut self.messages.iter().map(Vec::len)), self.message_bytes);
        let unsettled = self.calls.values().filter(|call| call.outcome.is_none());
        assert_eq!(unsettled.count(), self.in_flight);
        let live = self.sent.values().filter(|sent| sent.ticket.is_some()).count();
        assert_eq!(
            live + self.waiting.len(),
            self.in_flight,
            "each call waits in one place"
        );
        let unserved = self.open.values().filter(|open| !open.is_answered).count();
        assert!(self.requests.len() <= unserved);
    }
}
