//! What comes of the actions.

use std::time::Duration;

use proptest::prelude::*;
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::plan::{Action, Ask, Event as Seen, Flow, Moved, TryEnded, Written};
use trylatest_core::pod::PodId;
use trylatest_core::release::Release;
use trylatest_core::time::Now;
use trylatest_core::verdict::{CachedCopy, Evidence};

use super::{Answer, World};

impl World {
    pub(super) fn answered(&mut self, action: Action, answer: Answer) -> Result<(), TestCaseError> {
        match action {
            Action::Try {
                image,
                attempt,
                ask,
                ..
            } => {
                self.prove(&image, &answer.after);
                let failure = match &ask {
                    Ask::Always => answer.failure.map(|class| Failure::new(class, "why")),
                    Ask::IfAbsent => None,
                    Ask::Never(failure) => Some(failure.clone()),
                };
                if ask == Ask::Always {
                    let class = failure.as_ref().map(|failure| failure.class);
                    if class == Some(FailureClass::Unauthorized) {
                        self.answers.insert(image.clone(), false);
                    } else if class.is_none()
                        && let Some(digest) = answer.after.digest()
                    {
                        self.answers.insert(image.clone(), true);
                        self.given.insert((image.clone(), digest.clone(), None));
                    }
                }
                let evidence = Evidence::of_try(failure, &answer.before, answer.after, None);
                self.tell(Seen::TryEnded(TryEnded {
                    image,
                    attempt,
                    evidence,
                }))
            }
            Action::Inspect(image) => {
                self.prove(&image, &answer.after);
                self.tell(Seen::Inspected(image, answer.after))
            }
            Action::Compare(_, digest) => {
                let copies = [&answer.before, &answer.after];
                let digests = copies.into_iter().filter_map(|copy| copy.digest().cloned());
                let digests = (answer.sent == Written::Done).then(|| digests.collect());
                self.tell(Seen::Compared(digest, digests))
            }
            Action::Release { pod, release, .. } => self.written(&pod, release, answer.sent, false),
            Action::Rewrite(pod, release) => self.written(&pod, release, answer.sent, true),
            Action::Settle(id, release) => {
                let pod = self.pods.values_mut().find(|pod| pod.id == id);
                let mut sent = answer.sent;
                match pod {
                    None => sent = Written::Gone,
                    Some(_) if sent == Written::Gone => sent = Written::Failed,
                    Some(pod) if sent == Written::Done => pod.released = Some(release.clone()),
                    Some(_) => {}
                }
                self.tell(Seen::Settled(id, release, sent))
            }
            Action::TakeAway { image, id } => {
                self.prove(&image, &answer.before);
                let taken = match (&answer.before, answer.sent) {
                    (_, Written::Failed) => Err("no answer".to_owned()),
                    (copy, _) => Ok(copy.digest().cloned()),
                };
                self.tell(Seen::TakenAway { image, id, taken })
            }
            Action::GiveBack { image, id } => {
                self.away.remove(&image);
                self.prove(&image, &answer.after);
                let by_kubelet = answer.failure.is_none();
                if by_kubelet {
                    self.gives_to_all(&image, &answer.after);
                }
                self.tell(Seen::GivenBack {
                    image,
                    id,
                    copy: answer.after,
                    by_kubelet,
                })
            }
            _ => Ok(()),
        }
    }

    /// The kubelet has pulled an image whose name is away.
    pub(super) fn pulled(&mut self, which: usize, digest: Digest) -> Result<(), TestCaseError> {
        let under_way = &self.under_way;
        let is_settled = |image: &ImageName| {
            !under_way.iter().any(|action| {
                matches!(action, Action::TakeAway { image: other, .. } | Action::GiveBack { image: other, .. } if other == image)
            })
        };
        let away = self.away.iter().filter(|(image, _)| is_settled(image));
        let away: Vec<_> = away.map(|(image, id)| (image.clone(), *id)).collect();
        if away.is_empty() {
            return Ok(());
        }
        let (image, id) = away[which % away.len()].clone();
        self.away.remove(&image);
        let copy = CachedCopy::Usable {
            digest,
            size_bytes: 7,
        };
        self.prove(&image, &copy);
        self.gives_to_all(&image, &copy);
        self.tell(Seen::Returned { image, id, copy })
    }

    /// A command on the node has pulled an image, which took so long.
    pub(super) fn pulled_by_hand(
        &mut self,
        image: &str,
        digest: Digest,
        duration: Duration,
    ) -> Result<(), TestCaseError> {
        let image: ImageName = image.parse().expect("an image's name");
        // While its name is away, it is not pulled, nor found.
        if self.away.contains_key(&image) {
            return Ok(());
        }
        let digest = image.digest().unwrap_or(digest);
        let copy = CachedCopy::Usable {
            digest: digest.clone(),
            size_bytes: 7,
        };
        self.prove(&image, &copy);
        self.answers.insert(image.clone(), true);
        self.given.insert((image.clone(), digest.clone(), None));
        let now = self.now();
        let began = Now {
            wall: now.wall - duration,
            up: now.up.saturating_sub(duration),
        };
        let evidence = Evidence::of_try(None, &CachedCopy::Absent, copy, None);
        let tried = Box::new(evidence.to_try(&image, began, now, None));
        let digests = [digest].into();
        self.tell(Seen::TriedByHand { tried, digests })
    }

    pub(super) fn written(
        &mut self,
        id: &PodId,
        release: Release,
        sent: Written,
        again: bool,
    ) -> Result<(), TestCaseError> {
        let found = self.pods.iter().find(|(_, pod)| pod.id == *id);
        let slot = found.map(|(slot, _)| *slot);
        // The API server knows whether the pod is there.
        let sent = match (slot, sent) {
            (None, Written::Done | Written::Gone) => Written::Gone,
            (Some(_), Written::Gone) => Written::Failed,
            (_, sent) => sent,
        };
        if sent == Written::Done {
            self.decided.remove(&id.uid);
            if let Some(slot) = slot
                && let Some(pod) = self.pods.get_mut(&slot)
            {
                // The kubelet misses one change, and sees the next.
                self.hidden
                    .retain(|hidden| *hidden != slot || pod.released.is_none());
                pod.released = Some(release.clone());
            }
        }
        self.tell(if again {
            Seen::Rewritten(id.clone(), release, sent)
        } else {
            Seen::Written(id.clone(), release, sent)
        })?;
        if let Some(slot) = slot {
            self.gate_reads(slot);
            self.show(slot)?;
        }
        Ok(())
    }

    pub(super) fn moved(&mut self, which: usize, flow: Flow) -> Result<(), TestCaseError> {
        let tries: Vec<_> = self
            .under_way
            .iter()
            .filter_map(|action| match action {
                Action::Try { image, attempt, .. } => Some((image.clone(), *attempt)),
                _ => None,
            })
            .collect();
        if tries.is_empty() {
            return Ok(());
        }
        let (image, attempt) = tries[which % tries.len()].clone();
        self.tell(Seen::Moved(Moved {
            image,
            attempt,
            flow,
        }))
    }
}
