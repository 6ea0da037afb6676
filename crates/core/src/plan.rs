//! What is done for which pod, and when: every decision of the agent, as a state machine.
//!
//! There is one door: [`Planner::handle`] takes an [`Event`] and the time it was seen at, and returns
//! what is to be done as [`Action`]s. Nothing here waits: [`Planner::next_wakeup`] says when to come
//! back with [`Event::Tick`].
//!
//! One pod's way:
//!
//! 1. [`Event::Seen`] → the planner records the pod's current state (`pods`); `pod` knows what is owed to it.
//! 2. A round begins (`round`) and queues its images (`image`), whose tries begin in turns (`turns`) → [`Action::Try`].
//! 3. [`Event::TryEnded`] → that is remembered (`tried`, `crate::knowledge`), and each container that waits for it
//!    takes a step (`wait`, by `crate::verdict`) → [`Action::Release`].
//! 4. [`Event::Written`] → `repeat` knows when to write it again, `settle` what becomes of it, and `runs` what has
//!    started from something else.
//!
//! Where the way differs:
//!
//! - The pod's time is up first: [`Action::Inspect`] → [`Event::Inspected`]; the pull goes on (`catch_up`).
//! - A registry that fails is not asked for each pod (`circuit`), and `probe` finds out when it is back.
//! - The registry wants credentials: [`Action::TakeAway`], the kubelet pulls, and [`Event::Returned`] or
//!   [`Action::GiveBack`] (`handover`, at the `pace` that the kubelet allows). `pulls` shows how it fares, `spared` are
//!   those for whom it has just failed, and `brake` is on while one hangs.
//! - Pods that are to run what their rollout has look whether that is here (`same`).
//!
//! For some tries no pod waits: what pods run is tried again from time to time (`refresh`), and so is what pods
//! without a gate have started from (`unheld`). What a command has pulled is remembered as well (`by_hand`).
//!
//! Others read from it: `report` makes the report of the node, `figures` what its metrics show, `explain`
//! what would happen now, and `used` which copies are needed (`crate::keep`).
//!
//! Every event ends in `Planner::advance`, which alone begins what is due.

mod backoff;
mod brake;
mod by_hand;
mod catch_up;
mod circuit;
mod event;
mod explain;
mod figures;
mod handover;
mod image;
mod pace;
mod pod;
mod pods;
mod probe;
mod pulls;
mod refresh;
mod repeat;
mod report;
mod round;
mod runs;
mod same;
mod settle;
mod spared;
mod tried;
mod turns;
mod unheld;
mod used;
mod wait;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use self::brake::Hang;
use self::circuit::{Circuits, Heard};
pub use self::event::{Action, Answer, Ask, Event, Flow, Moved, Silence, TryEnded, Why, Written};
pub use self::figures::{Fallback, Figures, Pulls, Standing};
use self::image::{Image, News};
use self::pace::Pace;
use self::pod::Pod;
use self::refresh::Refresh;
use self::round::Round;
use self::settle::NodeNow;
use self::spared::Spared;
use self::wait::{Cause, Context, Request, Waiting};
use crate::image::ImageName;
use crate::keep::UsedImage;
use crate::knowledge::Knowledge;
use crate::node::NodeImage;
use crate::pod::{GatedPod, PodId};
use crate::record::ImageRecord;
use crate::release::Release;
use crate::rules::NodeRules;
use crate::time::Now;

/// The state machine. See the module.
#[derive(Debug)]
pub struct Planner {
    rules: NodeRules,
    node: String,
    /// By uid.
    pods: BTreeMap<String, Pod>,
    /// The pods whose gates the container runtime runs.
    running_gates: BTreeSet<String>,
    /// What is tried, or was.
    images: BTreeMap<ImageName, Image>,
    knowledge: Knowledge,
    /// Tries and hand-overs that have begun.
    attempts: u64,
    pace: Pace,
    /// When the next hand-over may begin, if one waits for that.
    paced_until: Option<Duration>,
    spared: Spared,
    circuits: Circuits,
    /// Those of earlier runs of the agent are not recalled yet.
    is_new: bool,
    /// The kubelet's pulls that hang.
    hangs: BTreeMap<ImageName, Hang>,
    /// When a pull that hangs was last cut off for others.
    gave_way: Option<Duration>,
    /// Since when no hand-over could be seen through, if none could.
    unwell_since: Option<Duration>,
    is_stopping: bool,
    changed: Changed,
    refresh: Refresh,
}

/// What may not be as it was when it was last taken.
#[derive(Debug)]
struct Changed {
    /// The node's report.
    report: bool,
    /// Which images are used.
    uses: bool,
}

impl Planner {
    /// The planner of this node, which knows what earlier runs of the agent have written down.
    pub fn new(node: &str, rules: NodeRules, records: &[ImageRecord]) -> Self {
        let mut knowledge = Knowledge::default();
        knowledge.learn(records);
        let pace = Pace::new(rules.kubelet_pulls);
        Self {
            rules,
            node: node.to_owned(),
            pods: BTreeMap::new(),
            running_gates: BTreeSet::new(),
            images: BTreeMap::new(),
            knowledge,
            attempts: 0,
            pace,
            paced_until: None,
            spared: Spared::default(),
            circuits: Circuits::default(),
            is_new: true,
            hangs: BTreeMap::new(),
            gave_way: None,
            unwell_since: Some(Duration::ZERO),
            is_stopping: false,
            changed: Changed {
                report: true,
                uses: true,
            },
            refresh: Refresh::default(),
        }
    }

    /// Takes in what has happened: what is to be done, in this order.
    pub fn handle(&mut self, now: Now, event: Event) -> Vec<Action> {
        let mut plan = Vec::new();
        if std::mem::take(&mut self.is_new) {
            self.recall(now);
        }
        self.changed.uses |= !matches!(
            event,
            Event::Moved(_)
                | Event::GatesRun(_)
                | Event::GatesUnknown
                | Event::SandboxStarted(_)
                | Event::Tick
        );
        match event {
            Event::Listed(pods) => self.list(now, pods, &mut plan),
            Event::Seen(pod) => self.see(now, *pod, &mut plan),
            Event::Gone(uid) => self.gone(&uid),
            Event::GatesRun(pods) => self.gates_run(now, pods),
            Event::GatesUnknown => self.gates_unknown(now),
            Event::SandboxStarted(uid) => self.sandbox_started(now, &uid),
            Event::TryEnded(ended) => self.try_ended(now, ended, &mut plan),
            Event::TriedByHand { tried, digests } => {
                self.tried_by_hand(now, *tried, &digests, &mut plan);
            }
            Event::Moved(moved) => self.moved(now, &moved, &mut plan),
            Event::Inspected(name, copy) => {
                self.step(now, &name, |_, _| Cause::Looked(&copy), &mut plan);
            }
            Event::Compared(digest, digests) => self.compared(&digest, digests.as_ref()),
            Event::Written(pod, release, written) => {
                self.written(now, &pod, release, false, written);
            }
            Event::Rewritten(pod, release, written) => {
                self.written(now, &pod, release, true, written);
            }
            Event::Showed(pod) => self.showed(now, &pod),
            Event::TakenAway { image, id, taken } => {
                self.taken_away(now, &image, id, taken, &mut plan);
            }
            Event::Returned { image, id, copy } => {
                self.returned(now, &image, id, copy, &mut plan);
            }
            Event::GivenBack {
                image,
                id,
                copy,
                by_kubelet,
            } => self.given_back(now, &image, id, copy, by_kubelet, &mut plan),
            Event::Settled(id, release, written) => self.settled(now, &id, release, written),
            Event::Well(true) => self.unwell_since = None,
            Event::Well(false) => {
                self.unwell_since.get_or_insert(now.up);
            }
            Event::KubeletVerifies(verifies) => self.rules.kubelet_verifies = verifies,
            Event::Configured(config) => {
                self.rules.config = config;
                self.changed.report = true;
            }
            Event::RolledBack(back) => self.changed.report |= self.knowledge.rolled_back(&back),
            Event::Stopping => self.is_stopping = true,
            Event::Pruned(left) => self.forget_all_but(&left),
            Event::Tick => {}
        }
        self.advance(now, &mut plan);
        plan
    }

    /// How long until [`Event::Tick`] has something to do; none if only other events can change it.
    pub fn next_wakeup(&self, now: Now) -> Option<Duration> {
        let waits = |image: &&Image| !image.waits_for_turn();
        let images = self.images.values().filter(waits).filter_map(Image::due);
        let pods = self
            .pods
            .values()
            .flat_map(|pod| pod.timers(now, &self.images));
        let stale = self.pods.values().filter_map(|pod| pod.stale_in(now));
        images
            .chain(self.next_turn(now))
            .chain(pods)
            .chain(self.handovers_due(now))
            .chain(self.cuts_due())
            .chain(self.probes_due(now))
            .chain(self.next_refresh())
            .map(|at| at.saturating_sub(now.up))
            .chain(stale)
            .min()
    }

    /// Whether [`Planner::take_report`] has something new.
    pub fn has_report(&self) -> bool {
        self.changed.report
    }

    /// The images of this node, for its report, if anything has changed since they were last taken.
    pub fn take_report(&mut self, now: Now) -> Option<Vec<NodeImage>> {
        let pods = self.pods.values();
        std::mem::take(&mut self.changed.report)
            .then(|| report::node_images(&self.knowledge, pods, &self.rules, now.wall))
    }

    /// The images that pods use or wait for, if that may have changed since it was last taken.
    pub fn take_used(&mut self) -> Option<Vec<UsedImage>> {
        let pods = self.pods.values();
        std::mem::take(&mut self.changed.uses).then(|| used::images(&self.knowledge, pods))
    }

    /// Whether it is for the agent to say which pods may use a private image's copy.
    pub fn agent_decides(&self) -> bool {
        !self.rules.gives_without_proof()
    }

    /// Whether a decided release is not written yet.
    pub fn is_releasing(&self) -> bool {
        let mut rounds = self.pods.values().filter_map(|pod| pod.round.as_ref());
        rounds.any(Round::is_decided)
    }

    /// Whether an image's name is away.
    pub fn is_handing_over(&self) -> bool {
        self.images.values().any(|image| image.handover.is_some())
    }

    /// The newest release of a pod that is known.
    pub fn release_of(&self, pod: &PodId) -> Option<&Release> {
        self.pods.get(&pod.uid)?.released.as_ref()
    }

    /// How many images are known.
    pub fn known_images(&self) -> usize {
        self.knowledge.len().max(self.images.len())
    }

    /// Forgets images that are not `left` and that no pod of this node names.
    fn forget_all_but(&mut self, left: &BTreeSet<ImageName>) {
        let pods = &self.pods;
        let is_kept = |name: &ImageName| {
            let mut named = pods.values().flat_map(Pod::images);
            left.contains(name) || named.any(|named| named == name)
        };
        self.images
            .retain(|name, image| image.is_busy() || is_kept(name));
        let images = &self.images;
        self.knowledge
            .retain(|name| images.contains_key(name) || is_kept(name));
        self.spared
            .retain(|name| images.contains_key(name) || is_kept(name));
        self.refresh
            .retain(|name| images.contains_key(name) || is_kept(name));
        let registries = images.keys().map(ImageName::registry).collect();
        self.circuits
            .retain(|name| images.contains_key(name), &registries);
        self.changed.report = true;
    }

    /// Does what has become due.
    fn advance(&mut self, now: Now, plan: &mut Vec<Action>) {
        self.begin_rounds(now, plan);
        self.let_time_pass(now, plan);
        self.start_handovers(now, plan);
        self.watch_handovers(now, plan);
        self.remember_refused(now, plan);
        let node = NodeNow {
            now,
            images: &self.images,
            knowledge: &self.knowledge,
            kubelet_verifies: self.rules.kubelet_verifies,
        };
        for pod in self.pods.values_mut() {
            plan.extend(pod.send_due(&node));
        }
        self.tell_unheld(now, plan);
        self.compare(plan);
        self.learn_of_unseen(now, plan);
        self.cut_what_hangs(now, plan);
        self.refresh_due(now);
        self.start_tries(now, plan);
        self.probe(now, plan);
    }

    /// Begins the rounds of pods that need a release, and queues their images.
    fn begin_rounds(&mut self, now: Now, plan: &mut Vec<Action>) {
        let mut begun = Vec::new();
        for (uid, pod) in &mut self.pods {
            if pod.round.is_some() || !pod.wants_release(now) {
                continue;
            }
            plan.extend(pod.complaints(&self.rules));
            pod.begin(now, &self.rules);
            begun.push(uid.clone());
        }
        let mut newcomers = Vec::new();
        for uid in begun {
            newcomers.extend(self.queue_or_look(now, &uid, plan));
        }
        for name in newcomers {
            self.start_over(now, &name, plan);
        }
    }

    /// A running try, or the kubelet's pull of a hand-over, has come this far.
    fn moved(&mut self, now: Now, moved: &Moved, plan: &mut Vec<Action>) {
        let Some(image) = self.images.get_mut(&moved.image) else {
            return;
        };
        if let Some(handover) = &mut image.handover
            && handover.id == moved.attempt
        {
            handover.moved(now);
            return self.pull_moved(now);
        }
        match image.moved(now, moved.attempt, moved.flow) {
            Some(News::Silence) => self.remember_silence(now, &moved.image, plan),
            Some(News::Answer(began)) => {
                let heard = Heard {
                    began,
                    is_refusal: false,
                };
                self.registry_answered(now, &moved.image, heard, plan);
            }
            None => {}
        }
    }

    /// Each container whose timer has ended moves on.
    fn let_time_pass(&mut self, now: Now, plan: &mut Vec<Action>) {
        let image = |container: &Waiting| self.images.get(container.image()?);
        let due = self.pods.values().flat_map(|pod| {
            let containers = pod.round.iter().flat_map(|round| &round.containers);
            containers.filter(|c| c.may_move_on(now, image(c), pod.gate_runs()))
        });
        let mut names: Vec<ImageName> = due.filter_map(|c| c.image().cloned()).collect();
        names.sort();
        names.dedup();
        for name in names {
            self.step(now, &name, |_, _| Cause::Time, plan);
        }
    }

    /// Each container that waits for this image moves on, as far as what has happened to it allows.
    fn step<'a>(
        &mut self,
        now: Now,
        name: &ImageName,
        cause: impl Fn(&GatedPod, &Round) -> Cause<'a>,
        plan: &mut Vec<Action>,
    ) {
        let Some(image) = self.images.get(name) else {
            return;
        };
        let rollouts = self.rollouts(name);
        let is_moving = !rollouts.is_empty() && self.is_moving(now, name);
        let mut needs = Vec::new();
        for pod in self.pods.values_mut() {
            let gate_runs = pod.gate_runs();
            let Some(round) = pod.round.as_mut() else {
                continue;
            };
            let cause = cause(&pod.seen, round);
            let waiting = round.containers.iter_mut();
            for container in waiting.filter(|container| container.image() == Some(name)) {
                let context = Context {
                    now,
                    name,
                    image,
                    knowledge: &self.knowledge,
                    rules: &Arc::clone(&container.rules),
                    gate_runs,
                    rollout: rollouts.of(&pod.seen),
                    is_moving,
                };
                needs.push(container.step(cause, &context));
            }
        }
        for need in needs {
            self.serve(now, name, need, plan);
        }
    }

    fn serve(&mut self, now: Now, name: &ImageName, need: Request, plan: &mut Vec<Action>) {
        let Some(image) = self.images.get_mut(name) else {
            return;
        };
        match need {
            Request::Nothing => {}
            Request::Look => {
                let inspect = Action::Inspect(name.clone());
                if !plan.contains(&inspect) {
                    plan.push(inspect);
                }
            }
            Request::Try => image.queue(now.up),
            Request::Retry => image.queue_retry(now, name, &self.node),
        }
    }
}

#[cfg(test)]
mod tests;
