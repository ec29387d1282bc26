//! The end of an `Exchange` stream whose client did something wrong.
//!
//! The request side finds the error, and the response side ends the stream with it. Replies to earlier events are sent
//! first. The end does not wait until peers send nothing: the client would not learn the reason, and its requests would
//! stay unread.

use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

/// The most frames that are sent after the request side has found an error: enough for all replies that may wait.
const LAST_FRAMES: usize = 16;

/// The error that the request side found, if any.
#[derive(Clone, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<Status>>>);

impl Verdict {
    /// Sets the status with which the stream must end.
    pub(super) fn pass(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    fn take(&self) -> Option<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The response side's part: decides when the stream ends with the verdict.
#[derive(Default)]
pub(super) struct Ending {
    verdict: Verdict,
    /// The verdict, once the response side has seen it, and how many frames may be sent before it.
    last: Option<(Status, usize)>,
}

impl Ending {
    /// Returns the verdict for the request side.
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    /// Called before each frame. Returns the status if the stream ends now.
    pub(super) fn due(&mut self) -> Option<Status> {
        if self.last.is_none() {
            self.last = self.verdict.take().map(|status| (status, LAST_FRAMES));
        }
        self.last.take_if(|(_, frames)| *frames == 0).map(|(status, _)| status)
    }

    /// Called with each frame. `full`: the frame has as many replies as fit. A frame that is not full has the last
    /// replies, so the stream may end after it.
    pub(super) fn told(&mut self, full: bool) {
        if let Some((_, frames)) = &mut self.last {
            *frames = if full { frames.saturating_sub(1) } else { 0 };
        }
    }

    /// Called when nothing is ready to be sent. Returns the status if there is a verdict.
    pub(super) fn idle(&mut self) -> Option<Status> {
        if let Some((_, frames)) = &mut self.last {
            *frames = 0;
        }
        let due = self.due();
        due.or_else(|| self.last.take().map(|(status, _)| status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convict(ending: &Ending) {
        ending.verdict().pass(Status::aborted("wrong"));
    }

    /// Peers that send without a pause do not keep the stream open: the reader is never idle here.
    #[test]
    fn a_verdict_does_not_wait_for_silence() {
        let mut ending = Ending::default();
        for _ in 0..100 {
            assert!(ending.due().is_none());
            ending.told(false);
        }
        convict(&ending);
        assert!(ending.due().is_none(), "earlier replies come first");
        ending.told(false);
        assert_eq!(ending.due().unwrap().message(), "wrong");
    }

    #[test]
    fn answers_go_before_a_verdict_but_not_for_ever() {
        let mut ending = Ending::default();
        convict(&ending);
        let mut frames = 0;
        while ending.due().is_none() {
            ending.told(frames < 5);
            frames += 1;
        }
        assert_eq!(frames, 6, "five full frames and the last answers");
        convict(&ending);
        let mut frames = 0;
        while ending.due().is_none() {
            ending.told(true);
            frames += 1;
        }
        assert_eq!(frames, LAST_FRAMES);
    }

    #[test]
    fn a_verdict_on_an_idle_stream_comes_at_once() {
        let mut ending = Ending::default();
        assert!(ending.due().is_none() && ending.idle().is_none());
        convict(&ending);
        assert!(ending.idle().is_some());
        assert!(ending.due().is_none() && ending.idle().is_none(), "the verdict comes once");
    }
}
