//! Questions about what would happen now, and reports of pulls by hand: from the socket to the running planner.
//!
//! The pods task answers between two events, from what the planner knows, after a look at the copies that
//! takes a moment and changes nothing. What nobody has time for is not answered.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use trylatest_containerd::ImageRuntime;
use trylatest_core::explain::{Explanation, Found, Subject};
use trylatest_core::image::ImageName;
use trylatest_core::record::Try;
use trylatest_core::verdict::CachedCopy;

use super::attempt::copy;
use super::by_hand::{NotBelieved, Report};
use super::history::History;

/// Most that wait.
const WAITING_MAX: usize = 8;

/// Most that are looked up at once.
pub(super) const AT_ONCE_MAX: usize = 2;

/// For the look. The answer then says what could not be seen.
const LOOK: Duration = Duration::from_secs(2);

/// For all of it. The socket's own deadline is longer, so that whoever asks reads why.
const ANSWER: Duration = Duration::from_secs(4);

/// A question, and where the answer goes; none if there is no such pod.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) subject: Subject,
    pub(super) answer: oneshot::Sender<Option<Explanation>>,
}

/// What comes from the socket.
#[derive(Debug)]
pub(super) enum Call {
    /// It changes nothing.
    Explain(Question),
    /// The planner is to know of it.
    Learn(Report),
}

/// Whoever asks or reports.
#[derive(Clone, Debug)]
pub(super) struct Questions(mpsc::Sender<Call>);

/// Both ends.
pub(super) fn channel() -> (Questions, mpsc::Receiver<Call>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Questions(sender), receiver)
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    /// Others wait.
    #[error("the agent has {WAITING_MAX} requests to answer already; try again")]
    Full,
    /// It came to nothing in time, as while the agent starts, or ends.
    #[error(
        "the agent did not come to an answer within {ANSWER:?}: it may be starting or stopping; try again"
    )]
    Late,
}

impl Questions {
    /// Asks the planner. None if there is no such pod.
    ///
    /// # Cancel safety
    /// A question that is dropped is not answered.
    pub(super) async fn ask(&self, subject: Subject) -> Result<Option<Explanation>, NoAnswer> {
        let question = |answer| Call::Explain(Question { subject, answer });
        self.call(question).await
    }

    /// Reports a pull by hand to the planner: whether that believes it, and then it is written down.
    ///
    /// # Cancel safety
    /// A report that is dropped may still be heard.
    pub(super) async fn report(&self, tried: Try) -> Result<Result<(), NotBelieved>, NoAnswer> {
        let report = |answer| Call::Learn(Report { tried, answer });
        self.call(report).await
    }

    async fn call<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> Result<T, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        match self.0.try_send(call(answer)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(NoAnswer::Full),
            Err(TrySendError::Closed(_)) => return Err(NoAnswer::Late),
        }
        match timeout(ANSWER, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(NoAnswer::Late),
        }
    }
}

/// Looks up what the planner does not know of these images. What does not come in time is not known.
pub(super) async fn look_up<R: ImageRuntime>(
    runtime: &R,
    history: &History,
    images: Vec<ImageName>,
) -> BTreeMap<ImageName, Found> {
    let copies = images.into_iter().map(async |image| {
        let listed = timeout(LOOK, runtime.listed(&image)).await;
        let late = |_| CachedCopy::Unknown {
            why: format!("containerd did not answer within {LOOK:?}"),
        };
        let copy = listed.map_or_else(late, copy);
        (image, copy)
    });
    let kept = async { timeout(LOOK, runtime.kept_copies()).await.ok()?.ok() };
    let records = async { timeout(LOOK, history.all()).await.ok()?.ok() };
    let (copies, kept, records) = futures::join!(join_all(copies), kept, records);
    let found = copies.into_iter().map(|(image, copy)| {
        let of_image = kept.as_ref().map(|kept| {
            let kept = kept.iter().filter(|copy| copy.image == image);
            kept.cloned().collect()
        });
        let mut records = records.iter().flatten();
        let record = records.find(|record| record.image == image).cloned();
        let found = Found {
            copy,
            kept: of_image,
            record,
        };
        (image, found)
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use trylatest_containerd::fake::FakeContainerd;

    use super::*;
    use crate::agent::metrics::Metrics;

    fn subject() -> Subject {
        Subject::Image {
            image: "reg.example/app".parse().unwrap(),
            namespace: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_planner_that_is_busy_is_not_waited_for() {
        let (questions, waiting) = channel();
        assert_eq!(questions.ask(subject()).await, Err(NoAnswer::Late));
        for _ in 1..WAITING_MAX {
            assert_eq!(questions.ask(subject()).await, Err(NoAnswer::Late));
        }
        assert_eq!(questions.ask(subject()).await, Err(NoAnswer::Full));
        drop(waiting);
        assert_eq!(questions.ask(subject()).await, Err(NoAnswer::Late));
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_seen_is_not_known_and_costs_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let (history, _) = History::open(&dir.path().join("index"), metrics).await;
        let node = FakeContainerd::new();
        let image: ImageName = "reg.example/app".parse().unwrap();
        node.hold(&image, "sha256:one", 1);
        let found = look_up(&node, &history, vec![image.clone()]).await;
        assert!(found[&image].copy.digest().is_some());
        assert_eq!(found[&image].kept, Some(Vec::new()));
        node.set_down(true);
        let found = look_up(&node, &history, vec![image.clone()]).await;
        assert!(matches!(found[&image].copy, CachedCopy::Unknown { .. }));
        assert_eq!(found[&image].kept, None, "and not: none is kept");
    }
}
