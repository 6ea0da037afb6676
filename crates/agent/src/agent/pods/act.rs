//! What the planner wants, carried out.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use trylatest_containerd::ImageRuntime;
use trylatest_core::image::ImageName;
use trylatest_core::plan::{Action, Event};

use super::super::aside;
use super::super::attempt::{PullLimits, attempt, prove};
use super::{Away, Came, Loop};

impl<R: ImageRuntime> Loop<R> {
    pub(super) async fn act(&mut self, action: Action) {
        let (runtime, api) = (Arc::clone(&self.own.runtime), self.own.api.clone());
        match action {
            Action::Record(tried) => self.record(tried).await,
            Action::Try {
                image,
                attempt: id,
                ask,
                stall,
            } => {
                self.own.metrics.registries.know(image.registry());
                let moved = self.moved.clone();
                let limits = PullLimits::of_node(stall, self.own.disk_floor);
                let cut = CancellationToken::new();
                self.cuts.insert(id, cut.clone());
                self.begin(async move {
                    let ended = attempt(&*runtime, image, id, ask, limits, moved, cut).await;
                    Came::Tried(ended)
                });
            }
            Action::Cut {
                image,
                attempt,
                why,
            } => {
                info!(%image, %why, "a pull that stands still is cut off");
                if let Some(cut) = self.cuts.get(&attempt) {
                    cut.cancel();
                }
            }
            Action::Inspect(image) => self.begin(async move {
                let copy = prove(&*runtime, &image).await;
                Came::Heard(Event::Inspected(image, copy))
            }),
            Action::Compare(image, digest) => self.begin(async move {
                let by_digest = format!("{}@{digest}", image.repository()).parse();
                let digests = match by_digest {
                    Ok(by_digest) => runtime.digests(&by_digest).await.ok(),
                    Err(_) => Some(BTreeSet::new()),
                };
                Came::Heard(Event::Compared(digest, digests))
            }),
            Action::Release {
                pod,
                release,
                waits_since,
            } => self.begin(async move {
                let written = api.release(&pod, &release).await;
                Came::Released(pod, release, waits_since, written)
            }),
            Action::Rewrite(pod, release) => self.begin(async move {
                let written = api.release(&pod, &release).await;
                Came::Heard(Event::Rewritten(pod, release, written))
            }),
            Action::Settle(..) | Action::TakeAway { .. } | Action::GiveBack { .. } => {
                self.hand_over(action);
            }
            Action::Progress(pod, progress) => self.begin(async move {
                if api.progress(&pod, &progress).await {
                    Came::Heard(Event::Showed(pod))
                } else {
                    Came::Done
                }
            }),
            Action::Complain(..)
            | Action::Overruled(..)
            | Action::Unanswered(..)
            | Action::Unseen(..) => self.tell_owner(action),
        }
    }

    /// The kubelet is to pull.
    fn hand_over(&mut self, action: Action) {
        let (runtime, api) = (Arc::clone(&self.own.runtime), self.own.api.clone());
        match action {
            Action::Settle(pod, release) => {
                let before = self.own.planner.release_of(&pod).cloned();
                self.telling += 1;
                self.begin(async move {
                    let written = api.release(&pod, &release).await;
                    Came::Settled(pod, release, before, written)
                });
            }
            Action::TakeAway { image, id } => self.begin(async move {
                let taken = aside::take(&*runtime, &image).await;
                Came::TakenAway(image, id, taken)
            }),
            Action::GiveBack { image, id } => {
                if let Some(away) = self.away.get(&id) {
                    away.follow.cancel();
                }
                self.begin(async move {
                    let (copy, by_kubelet) = aside::give_back(&*runtime, &image).await;
                    let event = Event::GivenBack {
                        image,
                        id,
                        copy,
                        by_kubelet,
                    };
                    Came::ThereAgain(id, event)
                });
            }
            _ => {}
        }
    }

    /// Waits until the kubelet has pulled an image whose name is away.
    pub(super) fn follow(&mut self, image: ImageName, id: u64, had_copy: bool) {
        let follow = CancellationToken::new();
        let away = Away {
            since: Instant::now(),
            had_copy,
            follow: follow.clone(),
        };
        self.away.insert(id, away);
        let (runtime, moved) = (Arc::clone(&self.own.runtime), self.moved.clone());
        self.begin(async move {
            let there = aside::follow(&*runtime, &image, id, &moved);
            match follow.run_until_cancelled(there).await {
                Some(copy) => Came::ThereAgain(id, Event::Returned { image, id, copy }),
                None => Came::Done,
            }
        });
    }
}
