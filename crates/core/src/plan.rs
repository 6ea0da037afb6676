//! What is done for which pod, and when: every decision of the agent, as a state machine.
//!
//! Everything seen outside comes in by a method with the time it was seen at; what is to be done
//! goes out as a [`Plan`]. Nothing here waits: [`Planner::next_wakeup`] says when to call
//! [`Planner::tick`].
//!
//! One pod's way: [`Planner::pod`] begins a round (`round`) and queues its images (`image`) →
//! [`Action::Try`] → [`Planner::ended`] settles its containers (`settle`, by `verdict`) →
//! [`Action::Release`] → [`Planner::sent`]. Where the pod's time is up first: [`Action::Inspect`] →
//! [`Planner::inspected`]. Whatever has become due, tries and releases too, is begun in
//! `Planner::advance`, with which every event ends; tries begin in turns (`turns`).

mod image;
mod node;
mod repeat;
mod round;
mod settle;
mod turns;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use self::image::Image;
use self::round::{NEWS, Pod, Sending, Slot};
use crate::image::ImageName;
use crate::node::NodeImage;
use crate::outcome::Failure;
use crate::pod::{GatedPod, Overruled, PodId};
use crate::record::{ImageRecord, Try};
use crate::release::{ContainerProgress, Progress, Release};
use crate::time::{Now, age};
use crate::verdict::{Copy, Known};

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
        /// Whether the registry is asked.
        ask: Ask,
    },
    /// Prove the copy there is, now; then call [`Planner::inspected`].
    Inspect(ImageName),
    /// Write the release to the pod; then call [`Planner::sent`].
    Release(PodId, Release),
    /// Write a sign of life to the pod; then, if it is written, call [`Planner::showed`].
    Progress(PodId, Progress),
    /// Tell the pod's owner what is wrong, as a Warning Event.
    Complain(PodId, String),
    /// Tell the pod's owner, once, that another admission policy has changed its pull policies.
    Overruled(PodId, Vec<Overruled>),
    /// Tell the pod's owner, once, that its gate has opened by itself at this time: no agent answered.
    Unanswered(PodId, Timestamp, Silence),
    /// The same, but an agent did answer, or was at work, and the gate could not see it.
    Unseen(PodId, Timestamp, Answer),
    /// Write to the pod a release that it has, again or with what it came to; then call
    /// [`Planner::sent`].
    Rewrite(PodId, Release),
}

/// Why no answer has reached a gate, as far as this agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It was not there, or too late.
    NoAgent,
    /// It has an answer, and the API server does not take it.
    Unwritten,
}

/// What a gate did not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The agent had tried for a while, and said so.
    AtWork,
    /// The release, as the pod carries it once it is amended.
    Released(Release),
}

/// Whether a try asks the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// It pulls.
    Always,
    /// Not if a copy is here: the name is a digest, which cannot move, and the registry gave it to
    /// anybody. The copy is only proven; if there is none, the next try asks.
    IfAbsent,
    /// It does not: the try has failed already, with this.
    Never(Failure),
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
    /// What the node's disk had lost of it, in words for a person, if it was mended.
    pub healed: Option<String>,
}

impl Ended {
    /// The end of a try that had only to look.
    pub fn unasked(image: ImageName, attempt: u64, before: Copy, after: Copy) -> Self {
        Self {
            image,
            attempt,
            failure: None,
            before,
            after,
            healed: None,
        }
    }
}

/// A try that runs has come this far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The image.
    pub image: ImageName,
    /// The try's name.
    pub attempt: u64,
    /// How far.
    pub flow: Flow,
}

/// How much of an image has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes that are here.
    pub bytes: u64,
    /// How many there will be, once that is known.
    pub total_bytes: Option<u64>,
    /// Whether any came during this try: then the registry gives them to it. What an earlier try
    /// has left behind says nothing of that kind.
    pub flows: bool,
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

    /// A running try has come this far.
    pub fn moved(&mut self, now: Now, moved: &Moved) -> Plan {
        if let Some(image) = self.images.get_mut(&moved.image) {
            image.moved(now, moved.attempt, moved.flow);
        }
        self.advance(now, Plan::default())
    }

    /// A release was written, or was not.
    pub fn sent(&mut self, now: Now, id: &PodId, release: Release, sent: Sent) -> Plan {
        if let Some(pod) = self.pods.get_mut(&id.uid) {
            match sent {
                Sent::Written => pod.release_sent(release, now),
                Sent::Gone => {
                    pod.round = None;
                    pod.seen.ended = true;
                }
                Sent::Failed => pod.send_failed(now),
            }
        }
        self.advance(now, Plan::default())
    }

    /// A sign of life was written.
    pub fn showed(&mut self, now: Now, pod: &PodId) {
        let pod = self.pods.get_mut(&pod.uid);
        if let Some(round) = pod.and_then(|pod| pod.round.as_mut()) {
            round.showed(now);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) -> Plan {
        self.advance(now, Plan::default())
    }

    /// How long until [`Planner::tick`] has something to do; none if only events can change it.
    pub fn next_wakeup(&self, now: Now) -> Option<Duration> {
        let waits = |image: &&Image| !image.waits_for_turn();
        let images = self.images.values().filter(waits).filter_map(Image::due);
        let images = images.chain(self.next_turn(now));
        let rounds = self.pods.values().filter_map(|pod| {
            let round = pod.round.as_ref()?;
            let send = match round.send {
                Sending::Idle { not_before, .. } if round.is_decided() => Some(not_before),
                Sending::Idle { .. } | Sending::InFlight { .. } => None,
            };
            let deadline = round.wanted().next().map(|_| round.deadline);
            [send, deadline, pod.progress_due(), round.next_unheard()]
                .into_iter()
                .flatten()
                .min()
        });
        let stale = self.pods.values().filter_map(|pod| pod.stale_in(now));
        let repeats = self.pods.values().filter_map(Pod::repeat_due);
        images
            .chain(rounds)
            .chain(repeats)
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

    /// How many images are known.
    pub fn known_images(&self) -> usize {
        self.images.len()
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
                entry.update(pod, now);
                entry
            }
            std::collections::btree_map::Entry::Vacant(entry) => {
                // A released pod was told by the agent that has released it; one without a gate is never
                // released.
                let news = age(now.wall, pod.created) <= NEWS && pod.released.is_none();
                if news && !pod.overruled.is_empty() && !pod.ended {
                    let overruled = Action::Overruled(pod.id.clone(), pod.overruled.clone());
                    plan.actions.push(overruled);
                }
                entry.insert(Pod::new(pod, now))
            }
        };
        for name in entry.images() {
            self.images.entry(name.clone()).or_default();
        }
        plan.actions.extend(entry.gave_up(now));
        if !entry.wants_release(now) {
            entry.round = None;
        } else if !entry.is_in_its_round() {
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
            let shows = pod.progress_due().is_some_and(|due| due <= now.up);
            plan.actions.extend(pod.repeat(now));
            let Some(round) = &mut pod.round else {
                continue;
            };
            for image in round.overdue(now, &self.images) {
                let inspect = Action::Inspect(image);
                if !plan.actions.contains(&inspect) {
                    plan.actions.push(inspect);
                }
            }
            if let Some(release) = round.release_due(now) {
                plan.actions.push(Action::Release(id, release));
            } else if shows {
                round.progress_sent(now);
                let progress = progress(&round.slots, &self.images, now);
                plan.actions.push(Action::Progress(id, progress));
            }
        }
        self.start_tries(now, &mut plan);
        plan
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

/// What is known of an image. Who may have it is the registry's word on the repository: a name of
/// which it has said nothing itself is as private as the others.
fn known(images: &BTreeMap<ImageName, Image>, name: &ImageName) -> Known {
    let own = images.get(name).map(|image| image.known.clone());
    let mut known = own.unwrap_or_default();
    if known.confirmed.is_none() {
        let mut siblings = images
            .iter()
            .filter(|(other, _)| other.repository() == name.repository());
        known.needs_credentials |= siblings.any(|(_, image)| image.known.needs_credentials);
    }
    known
}

fn progress(slots: &[Slot], images: &BTreeMap<ImageName, Image>, now: Now) -> Progress {
    let containers = slots.iter().filter_map(|slot| {
        let running = images.get(slot.image()?).and_then(|i| i.attempt.as_ref());
        let progress = ContainerProgress {
            image: slot.written.clone(),
            attempt: slot.attempts + 1,
            bytes: running.map_or(0, |attempt| attempt.flow.bytes),
            total_bytes: running.and_then(|attempt| attempt.flow.total_bytes),
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
