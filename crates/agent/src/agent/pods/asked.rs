//! Questions and reports of pulls by hand, from the socket: each is looked up before the planner hears of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{info, warn};
use trylatest_containerd::ImageRuntime;
use trylatest_core::explain::Found;
use trylatest_core::image::ImageName;
use trylatest_core::plan::Event;

use super::super::by_hand::{self, NotBelieved, Report};
use super::super::questions::{self, Call, Question};
use super::{Came, Loop};

impl<R: ImageRuntime> Loop<R> {
    pub(super) fn called(&mut self, call: Call) {
        match call {
            Call::Explain(question) => self.look_up(question),
            Call::Learn(report) => self.check(report),
        }
    }

    /// A question has come: the planner is asked once its images have been looked at.
    fn look_up(&mut self, question: Question) {
        if question.answer.is_closed() {
            return;
        }
        let Some(images) = self.own.planner.images_of(&question.subject) else {
            // Whoever has asked may have gone.
            let _ = question.answer.send(None);
            return;
        };
        let (runtime, history) = (Arc::clone(&self.own.runtime), self.own.history.clone());
        self.asked += 1;
        self.begin(async move {
            let found = questions::look_up(&*runtime, &history, images).await;
            Came::LookedUp(question, found)
        });
    }

    /// A pull by hand is reported: whether the name points to what it brought. That is as true if nobody waits for the
    /// answer any more.
    fn check(&mut self, report: Report) {
        let runtime = Arc::clone(&self.own.runtime);
        let now = self.own.clock.now().wall;
        self.asked += 1;
        self.begin(async move {
            let Report { tried, answer } = report;
            let image = tried.image.clone();
            let checked = by_hand::check(&*runtime, tried, now).await;
            match &checked {
                Ok(_) => info!(%image, "an image was pulled by hand"),
                Err(error) => warn!(%image, %error, "a reported pull by hand was ignored"),
            }
            Came::Checked(checked, answer)
        });
    }

    pub(super) fn checked(
        &mut self,
        checked: Result<Event, NotBelieved>,
        answer: oneshot::Sender<Result<(), NotBelieved>>,
    ) -> Option<Event> {
        self.asked -= 1;
        let (event, answered) = match checked {
            Ok(event) => (Some(event), Ok(())),
            Err(why) => (None, Err(why)),
        };
        // What is under way goes on once the event is handled: who reads the answer finds it written down.
        self.begin(async move {
            let _ = answer.send(answered);
            Came::Done
        });
        event
    }

    pub(super) fn answer(&self, question: Question, found: &BTreeMap<ImageName, Found>) {
        let Question { subject, answer } = question;
        let now = self.own.clock.now();
        let planner = &self.own.planner;
        let _ = answer.send(planner.explain(now, &subject, found, self.own.keep_for));
    }
}
