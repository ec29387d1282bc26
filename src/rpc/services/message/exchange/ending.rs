//! When an `Exchange` stream ends because its client did something wrong.
//!
//! The request side finds what is wrong and the response side ends the stream: after everything that was answered before,
//! and however much peers have to say. Waiting for silence would leave the client without the reason, and its requests
//! unread.

use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

/// Frames that may still go out once the request side found something wrong: enough for all answers that may wait.
const LAST_FRAMES: usize = 16;

/// What the request side found wrong.
#[derive(Clone, Default)]
pub(super) struct Verdict(Arc<Mutex<Option<Status>>>);

impl Verdict {
    /// The stream shall end with this status.
    pub(super) fn pass(&self, status: Status) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    fn take(&self) -> Option<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The response side's part: when the verdict is told.
#[derive(Default)]
pub(super) struct Ending {
    verdict: Verdict,
    /// The verdict, once seen, and how many frames may go out before it.
    last: Option<(Status, usize)>,
}

impl Ending {
    /// For the request side.
    pub(super) fn verdict(&self) -> Verdict {
        self.verdict.clone()
    }

    /// Asked before each frame: the stream ends now.
    pub(super) fn due(&mut self) -> Option<Status> {
        if self.last.is_none() {
            self.last = self.verdict.take().map(|status| (status, LAST_FRAMES));
        }
        self.last.take_if(|(_, frames)| *frames == 0).map(|(status, _)| status)
    }

    /// A frame goes out, full of answers or not. One that is not full has the last of them.
    pub(super) fn told(&mut self, full: bool) {
        if let Some((_, frames)) = &mut self.last {
            *frames = if full { frames.saturating_sub(1) } else { 0 };
        }
    }

    /// There is nothing to tell.
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
        assert!(ending.due().is_none(), "what was answered before comes first");
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
        assert!(ending.due().is_none() && ending.idle().is_none(), "it is told once");
    }
}
