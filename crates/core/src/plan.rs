//! What is done for which pod, and when: every decision of the agent, as a state machine.
//!
//! Everything seen outside comes in by a method with the time it was seen at; what is to be done
//! goes out as a [`Plan`]. Nothing here waits: [`Planner::next_wakeup`] says when to call
//! [`Planner::tick`].
//!
//! One pod's way: [`Planner::pod`] begins a round and queues its images → [`Action::Try`] →
//! [`Planner::ended`] judges (`verdict`) → [`Action::Release`] → [`Planner::sent`]. Where the
//! pod's time is up first: [`Action::Inspect`] → [`Planner::inspected`].

mod image;
mod node;
mod round;

use std::collections::BTreeMap;
use std::time::Duration;

use self::image::Image;
use self::round::{Pod, Send, Slot, Wait};
use crate::image::ImageName;
use crate::node::NodeImage;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::pod::{GatedPod, PodId};
use crate::record::{ImageRecord, Try};
use crate::release::{ContainerProgress, Progress, Release};
use crate::settings::Settings;
use crate::time::Now;
use crate::verdict::{Copy, Verdict, judge};

/// The node's settings.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a pod waits before it takes the cached copy, where it does not say so itself.
    pub try_for: Duration,
    /// Hand out cached copies of private images without proof.
    pub allow_unverified_fallback: bool,
}

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Tries to remember, before anything is sent.
    pub records: Vec<Try>,
    /// The rest.
    pub actions: Vec<Action>,
}

/// One thing to do. Nothing has to be awaited by the caller: results come back by a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Prove the copy there is, pull, prove again; then call [`Planner::ended`].
    Try {
        /// What to pull.
        image: ImageName,
        /// Names this try.
        attempt: u64,
        /// A copy that is here needs no registry: the name is a digest, which cannot move, and the
        /// registry gave it to anybody.
        settled: bool,
    },
    /// Prove the copy there is, now; then call [`Planner::inspected`].
    Inspect(ImageName),
    /// Write the release to the pod; then call [`Planner::sent`].
    Release(PodId, Release),
    /// Write a sign of life to the pod; nothing comes back.
    Progress(PodId, Progress),
    /// Tell the pod's owner what is wrong, as a Warning Event.
    Complain(PodId, String),
}

/// A try that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The image.
    pub image: ImageName,
    /// The try's name.
    pub attempt: u64,
    /// Why the pull failed, if it did.
    pub failure: Option<Failure>,
    /// The copy proven before the pull.
    pub before: Copy,
    /// The copy proven after it.
    pub after: Copy,
}

/// How writing a release went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The API server has it.
    Written,
    /// There is no such pod any more.
    Gone,
    /// It may work later.
    Failed,
}

/// The state machine. See the module.
#[derive(Debug)]
pub struct Planner {
    limits: Limits,
    /// By uid.
    pods: BTreeMap<String, Pod>,
    images: BTreeMap<ImageName, Image>,
    attempts: u64,
    node: String,
}

impl Planner {
    /// An empty planner.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            pods: BTreeMap::new(),
            images: BTreeMap::new(),
            attempts: 0,
            node: String::new(),
        }
    }

    /// Whose planner it is. Nodes that lost the same registry do not come back in step.
    #[must_use]
    pub fn on_node(mut self, name: &str) -> Self {
        name.clone_into(&mut self.node);
        self
    }

    /// Takes over what earlier runs of the agent have written down. Call it before anything else.
    pub fn learn(&mut self, records: &[ImageRecord]) {
        for record in records {
            let image = self.images.entry(record.image.clone()).or_default();
            image.recall(record);
        }
    }

    /// The whole list of gated pods, after a connect or a re-list.
    pub fn reset(&mut self, now: Now, pods: Vec<GatedPod>) -> Plan {
        self.pods
            .retain(|uid, _| pods.iter().any(|pod| pod.id.uid == *uid));
        let mut plan = Plan::default();
        for pod in pods {
            self.see(now, pod, &mut plan);
        }
        self.advance(now, plan)
    }

    /// A pod as the watch shows it now.
    pub fn pod(&mut self, now: Now, pod: GatedPod) -> Plan {
        let mut plan = Plan::default();
        self.see(now, pod, &mut plan);
        self.advance(now, plan)
    }

    /// A pod is gone.
    pub fn gone(&mut self, now: Now, uid: &str) -> Plan {
        self.pods.remove(uid);
        self.advance(now, Plan::default())
    }

    /// A running try has received this much.
    pub fn moved(&mut self, image: &ImageName, attempt: u64, bytes: u64, total_bytes: Option<u64>) {
        if let Some(running) = self.images.get_mut(image).and_then(|i| i.attempt.as_mut())
            && running.id == attempt
        {
            running.bytes = bytes;
            running.total_bytes = total_bytes;
        }
    }

    /// A try has ended.
    pub fn ended(&mut self, now: Now, ended: &Ended) -> Plan {
        let mut plan = Plan::default();
        let Some(image) = self.images.get_mut(&ended.image) else {
            return plan;
        };
        let Some(attempt) = image.attempt.take_if(|a| a.id == ended.attempt) else {
            return plan;
        };
        let failure = ended.failure.clone().or_else(|| unusable(&ended.after));
        let record = record(
            self.limits,
            image,
            &attempt.started,
            now,
            ended,
            failure.as_ref(),
        );
        image.finish(&record);
        plan.records.push(record);
        for pod in self.pods.values_mut() {
            let Some(round) = &mut pod.round else {
                continue;
            };
            let answers = answers(failure.as_ref(), attempt.started.up, round.since);
            let overdue = now.up >= round.deadline;
            for slot in &mut round.slots {
                if slot.image() != Some(&ended.image) {
                    continue;
                }
                if !answers && matches!(slot.wait, Wait::Try(_)) {
                    image.queue(now.up);
                    continue;
                }
                let end = End {
                    failure: failure.as_ref(),
                    before: &ended.before,
                    after: &ended.after,
                };
                settle(slot, image, &end, &pod.seen.settings, self.limits, now);
                if let Some(name) = slot.image().cloned() {
                    let failure = failure.clone().unwrap_or_else(no_answer);
                    if overdue {
                        slot.give_up(failure);
                    } else {
                        slot.attempts += 1;
                        slot.failure = Some(failure);
                        image.queue_retry(now, &name, &self.node);
                    }
                }
            }
        }
        self.advance(now, plan)
    }

    /// The copy that was asked for by [`Action::Inspect`].
    pub fn inspected(&mut self, now: Now, name: &ImageName, copy: &Copy) -> Plan {
        let mut plan = Plan::default();
        let Some(image) = self.images.get_mut(name) else {
            return plan;
        };
        let running = image.attempt.is_some();
        let mut timed_out = None;
        for pod in self.pods.values_mut() {
            let Some(round) = &mut pod.round else {
                continue;
            };
            for slot in &mut round.slots {
                if !matches!(&slot.wait, Wait::Inspection(waits) if waits == name) {
                    continue;
                }
                if image.may_yet_be_refused() {
                    slot.wait = Wait::LastTry(name.clone());
                    continue;
                }
                let failure = slot.failure.clone().unwrap_or_else(|| time_is_up(image));
                let end = End {
                    failure: Some(&failure),
                    before: copy,
                    after: copy,
                };
                settle(slot, image, &end, &pod.seen.settings, self.limits, now);
                match &slot.wait {
                    Wait::Done(release) if release.outcome != Outcome::Unavailable => {
                        timed_out = Some((round.since, failure));
                    }
                    Wait::Done(_) => {}
                    // As long as bytes flow, a pod with nothing to start from waits.
                    _ if running => slot.wait = Wait::LastTry(name.clone()),
                    _ => slot.give_up(failure),
                }
            }
        }
        if let Some((since, failure)) = timed_out {
            let started = Now {
                wall: now.wall - now.up.saturating_sub(since),
                up: since,
            };
            let ended = Ended {
                image: name.clone(),
                attempt: 0,
                failure: Some(failure.clone()),
                before: copy.clone(),
                after: copy.clone(),
            };
            let record = record(self.limits, image, &started, now, &ended, Some(&failure));
            image.remember(&record);
            plan.records.push(record);
        }
        self.advance(now, plan)
    }

    /// A release was written, or was not.
    pub fn sent(&mut self, now: Now, id: &PodId, release: Release, sent: Sent) -> Plan {
        if let Some(pod) = self.pods.get_mut(&id.uid) {
            match sent {
                Sent::Written => pod.release_sent(release),
                Sent::Gone => {
                    pod.round = None;
                    pod.seen.ended = true;
                }
                Sent::Failed => {
                    if let Some(round) = &mut pod.round {
                        round.send_failed(now);
                    }
                }
            }
        }
        self.advance(now, Plan::default())
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Plan {
        self.advance(now, Plan::default())
    }

    /// How long until [`Planner::tick`] has something to do; none if only events can change it.
    pub fn next_wakeup(&self, now: Now) -> Option<Duration> {
        let images = self.images.values().filter_map(Image::due);
        let rounds = self.pods.values().filter_map(|pod| {
            let round = pod.round.as_ref()?;
            let send = match round.send {
                Send::Idle { not_before, .. } if round.is_decided() => Some(not_before),
                Send::Idle { .. } | Send::InFlight { .. } => None,
            };
            let deadline = round.wanted().next().map(|_| round.deadline);
            let progress = (!round.is_decided()).then_some(round.progress_at);
            [send, deadline, progress].into_iter().flatten().min()
        });
        let stale = self.pods.values().filter_map(|pod| pod.stale_in(now));
        images
            .chain(rounds)
            .map(|at| at.saturating_sub(now.up))
            .chain(stale)
            .min()
    }

    /// The images of this node, for its report.
    pub fn node_images(&self) -> Vec<NodeImage> {
        node::node_images(&self.images, self.pods.values())
    }

    /// Since when, on [`Now::up`], this pod waits for a release; none if it does not.
    pub fn waits_since(&self, pod: &PodId) -> Option<Duration> {
        let round = self.pods.get(&pod.uid)?.round.as_ref()?;
        Some(round.began)
    }

    /// Whether a decided release is not written yet.
    pub fn is_releasing(&self) -> bool {
        let mut rounds = self.pods.values().filter_map(|pod| pod.round.as_ref());
        rounds.any(round::Round::is_decided)
    }

    /// Forgets images that are `gone` and that no pod of this node names.
    pub fn forget(&mut self, gone: impl Fn(&ImageName) -> bool) {
        let pods = &self.pods;
        self.images.retain(|name, image| {
            let mut named = pods.values().flat_map(Pod::images);
            image.is_busy() || named.any(|named| named == name) || !gone(name)
        });
    }

    fn see(&mut self, now: Now, pod: GatedPod, plan: &mut Plan) {
        let entry = match self.pods.entry(pod.id.uid.clone()) {
            std::collections::btree_map::Entry::Occupied(entry) => {
                let entry = entry.into_mut();
                entry.update(pod);
                entry
            }
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Pod::new(pod)),
        };
        for name in entry.images() {
            self.images.entry(name.clone()).or_default();
        }
        if !entry.wants_release(now) {
            entry.round = None;
        } else if entry.round.is_none() {
            begin(entry, &mut self.images, now, self.limits, plan);
        }
    }

    /// Does what has become due.
    fn advance(&mut self, now: Now, mut plan: Plan) -> Plan {
        for pod in self.pods.values_mut() {
            if pod.round.is_none() && pod.wants_release(now) {
                begin(pod, &mut self.images, now, self.limits, &mut plan);
            }
            let id = pod.seen.id.clone();
            let Some(round) = &mut pod.round else {
                continue;
            };
            if now.up >= round.deadline {
                for slot in &mut round.slots {
                    if let Wait::Try(image) = &slot.wait {
                        let inspect = Action::Inspect(image.clone());
                        slot.wait = Wait::Inspection(image.clone());
                        if !plan.actions.contains(&inspect) {
                            plan.actions.push(inspect);
                        }
                    }
                }
            }
            if let Some(release) = round.release_due(now) {
                plan.actions.push(Action::Release(id, release));
            } else if !round.is_decided() && now.up >= round.progress_at {
                round.progress_written(now);
                let progress = progress(&round.slots, &self.images, now);
                plan.actions.push(Action::Progress(id, progress));
            }
        }
        self.start_tries(now, &mut plan);
        plan
    }

    fn start_tries(&mut self, now: Now, plan: &mut Plan) {
        for (name, image) in &mut self.images {
            if image.due().is_none_or(|due| due > now.up) {
                continue;
            }
            let mut rounds = self.pods.values().filter_map(|pod| pod.round.as_ref());
            if !rounds.any(|round| round.wanted().any(|wanted| wanted == name)) {
                image.leave();
                continue;
            }
            self.attempts += 1;
            image.start(now, self.attempts);
            plan.actions.push(Action::Try {
                image: name.clone(),
                attempt: self.attempts,
                // Only what the registry has given to anybody is taken for granted.
                settled: name.has_digest() && image.known.is_public(),
            });
        }
    }
}

/// Begins a pod's round and queues its images.
fn begin(
    pod: &mut Pod,
    images: &mut BTreeMap<ImageName, Image>,
    now: Now,
    limits: Limits,
    plan: &mut Plan,
) {
    let complaints = pod.complaints().into_iter();
    plan.actions
        .extend(complaints.map(|words| Action::Complain(pod.seen.id.clone(), words)));
    for name in pod.begin(now, limits.try_for).wanted() {
        images.entry(name.clone()).or_default().queue(now.up);
    }
}

/// How a try ended, for one container.
struct End<'a> {
    failure: Option<&'a Failure>,
    before: &'a Copy,
    after: &'a Copy,
}

/// Decides a container if this end decides it.
fn settle(
    slot: &mut Slot,
    image: &Image,
    end: &End<'_>,
    settings: &Settings,
    limits: Limits,
    now: Now,
) {
    let verdict = judge(
        end.failure,
        end.before,
        end.after,
        &image.known,
        settings,
        limits.allow_unverified_fallback,
        now.wall,
    );
    if let Verdict::Decided { outcome, note } = verdict {
        let digest = end.after.digest();
        let confirmed = digest.and_then(|digest| image.known.confirmed_at(digest));
        let failure = end.failure.cloned();
        slot.decide(outcome, failure, digest.map(str::to_owned), confirmed, note);
    }
}

/// What is remembered of a try: the outcome for a pod without settings of its own.
fn record(
    limits: Limits,
    image: &Image,
    started: &Now,
    now: Now,
    ended: &Ended,
    failure: Option<&Failure>,
) -> Try {
    let verdict = judge(
        failure,
        &ended.before,
        &ended.after,
        &image.known,
        &Settings::default(),
        limits.allow_unverified_fallback,
        now.wall,
    );
    let outcome = match verdict {
        Verdict::Decided { outcome, .. } => outcome,
        Verdict::TryAgain => Outcome::Unavailable,
    };
    let (digest, size_bytes) = match &ended.after {
        Copy::Usable { digest, size_bytes } => (Some(digest.clone()), Some(*size_bytes)),
        Copy::Absent | Copy::Unusable { .. } | Copy::Unknown { .. } => (None, None),
    };
    Try {
        image: ended.image.clone(),
        started: started.wall,
        duration: now.up.saturating_sub(started.up),
        outcome,
        failure: failure.cloned(),
        digest,
        size_bytes,
        copy_unknown: matches!(ended.after, Copy::Unknown { .. }),
    }
}

/// Whether an ended try says something about a pod that came at `since`.
///
/// A success does if it began after the pod: the tag may have moved in between. So do a registry's
/// answers. That the registry gave none is as true for a pod that came meanwhile, and spares it
/// the same wait.
fn answers(failure: Option<&Failure>, started: Duration, since: Duration) -> bool {
    let silence = failure.is_some_and(|failure| match failure.class {
        FailureClass::Timeout | FailureClass::Network | FailureClass::Local => true,
        FailureClass::ServerError
        | FailureClass::RateLimited
        | FailureClass::NotFound
        | FailureClass::Unauthorized
        | FailureClass::Invalid
        | FailureClass::Unknown => false,
    });
    silence || started >= since
}

/// A pull that worked and left nothing to start from is a failure too.
fn unusable(after: &Copy) -> Option<Failure> {
    match after {
        Copy::Usable { .. } => None,
        Copy::Absent => Some(Failure::new(
            FailureClass::Local,
            "pulled, but the image is gone again",
        )),
        Copy::Unusable { why } => Some(Failure::new(
            FailureClass::Invalid,
            format!("pulled, but no container can start from it: {why}"),
        )),
        Copy::Unknown { why } => Some(Failure::new(
            FailureClass::Local,
            format!("pulled, but not proven: {why}"),
        )),
    }
}

fn no_answer() -> Failure {
    Failure::new(FailureClass::Unknown, "no reason was given")
}

/// The pod's time is up before the try has ended.
fn time_is_up(image: &Image) -> Failure {
    let flowing = image.attempt.as_ref().is_some_and(|a| a.bytes > 0);
    Failure::new(
        FailureClass::Timeout,
        if flowing {
            "the pod's time to try is up; the download goes on for the next pod"
        } else {
            "the pod's time to try is up and the registry has not answered"
        },
    )
}

fn progress(slots: &[Slot], images: &BTreeMap<ImageName, Image>, now: Now) -> Progress {
    let containers = slots.iter().filter_map(|slot| {
        let running = images.get(slot.image()?).and_then(|i| i.attempt.as_ref());
        let progress = ContainerProgress {
            image: slot.written.clone(),
            attempt: slot.attempts + 1,
            bytes: running.map_or(0, |attempt| attempt.bytes),
            total_bytes: running.and_then(|attempt| attempt.total_bytes),
            failure: slot.failure.clone(),
        };
        Some((slot.name.clone(), progress))
    });
    Progress {
        time: now.wall,
        containers: containers.collect(),
    }
}

#[cfg(test)]
mod tests;
