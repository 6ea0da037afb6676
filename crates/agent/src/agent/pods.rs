//! The agent's main task: what the watch shows goes to the planner, what the planner wants is
//! carried out, what came of it goes back.
//!
//! Nothing is spawned: what is under way are futures that this task owns and polls. Every arm of
//! its `select!` is cancel-safe: streams, channels and timers lose nothing when they are not
//! chosen.

mod act;
mod asked;
mod refusals;
mod tell;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use trylatest_containerd::{ImageRuntime, PodEvent};
use trylatest_core::config::Config;
use trylatest_core::digest::Digest;
use trylatest_core::disk::Amount;
use trylatest_core::explain::Found;
use trylatest_core::image::ImageName;
use trylatest_core::keep::UsedImage;
use trylatest_core::node::NodeReport;
use trylatest_core::plan::{Action, Event, Moved, Planner, TryEnded, Written};
use trylatest_core::pod::{GatedPod, PodId};
use trylatest_core::record::Try;
use trylatest_core::release::Release;
use trylatest_k8s::{PodChange, WatchError};

use self::refusals::Refusals;
use super::api::{Api, words};
use super::aside;
use super::attempt;
use super::by_hand::NotBelieved;
use super::gates;
use super::health::Health;
use super::history::History;
use super::keeper::Waiting;
use super::kubelet;
use super::metrics::{Channel, Metrics};
use super::offers::{self, Offers};
use super::questions::{self, Call, Question};
use super::rollbacks::Marks;
use crate::args::Verifies;
use crate::clock::Clock;

/// Movements that wait to be read; more are dropped, the next look repeats them.
const MOVED_MAX: usize = 256;

/// The loop turns at least this often, which is what the liveness probe looks at.
const BEAT_EVERY: Duration = Duration::from_secs(5);

/// How long to wait at the start for names that an earlier agent has taken away.
const TIDY: Duration = Duration::from_secs(5);

/// How long releases under way may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);

/// How often what nobody needs is forgotten; earlier if this many images have become known.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);
const PRUNE_AFTER: usize = 1000;

/// What the task works with.
pub(super) struct Pods<R> {
    pub(super) runtime: Arc<R>,
    pub(super) api: Api,
    pub(super) history: History,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) planner: Planner,
    pub(super) clock: Clock,
    /// What stays free on the disk.
    pub(super) disk_floor: Amount,
    /// How long a copy is kept that no pod uses, where the configuration does not say so.
    pub(super) keep_for: Duration,
    /// The administrator's configuration, whenever it changes.
    pub(super) config: watch::Receiver<Config>,
    /// Names that are pointed back to an earlier copy, once that is known.
    pub(super) rolled_back: watch::Receiver<Option<Marks>>,
    pub(super) kubelet_verifies: Verifies,
    pub(super) report: watch::Sender<Option<NodeReport>>,
    pub(super) used: watch::Sender<Option<Vec<UsedImage>>>,
    pub(super) gates: Offers<Waiting>,
    pub(super) questions: mpsc::Receiver<Call>,
}

/// What came of something under way.
enum Came {
    /// A try has ended.
    Tried(TryEnded),
    /// The planner is to hear it.
    Heard(Event),
    /// A release, and when its pod began to wait for it.
    Released(PodId, Release, Duration, Written),
    /// What became of a release, and the release as it was.
    Settled(PodId, Release, Option<Release>, Written),
    /// A name was taken away, or could not be.
    TakenAway(ImageName, u64, Result<Option<Digest>, String>),
    /// A name is there again.
    ThereAgain(u64, Event),
    /// No name is away that an earlier agent has taken.
    GivenBackAll,
    /// What was looked up for a question.
    LookedUp(Question, BTreeMap<ImageName, Found>),
    /// What there is to a report of a pull by hand.
    Checked(
        Result<Event, NotBelieved>,
        oneshot::Sender<Result<(), NotBelieved>>,
    ),
    /// An Event was written, or was not.
    Told,
    Done,
}

/// A hand-over whose end is waited for.
struct Away {
    since: Instant,
    /// A name was there to be taken.
    had_copy: bool,
    /// Ends the wait for the kubelet's pull.
    follow: CancellationToken,
}

/// The running task.
struct Loop<R> {
    own: Pods<R>,
    under_way: FuturesUnordered<BoxFuture<'static, Came>>,
    moved: Offers<Moved>,
    /// Events under way.
    telling: usize,
    /// Questions and reports that are looked up.
    asked: usize,
    /// Running tries, by their names.
    cuts: HashMap<u64, CancellationToken>,
    /// Names that are away, by the hand-over.
    away: HashMap<u64, Away>,
    /// What the planner was last told of that.
    is_well: bool,
    /// Registries that are not asked for each pod.
    open: BTreeSet<String>,
    refusals: Refusals,
    /// From when on the node's report may be put together again.
    report_at: Instant,
}

impl<R: ImageRuntime> Pods<R> {
    /// Runs until `stop`, or until the stream of changes ends, which is an error.
    pub(super) async fn run(
        self,
        changes: impl Stream<Item = Result<PodChange, WatchError>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut changes = std::pin::pin!(changes);
        let overflows = self.metrics.calls.overflows(Channel::Moved);
        let (sender, mut moved) = offers::channel(MOVED_MAX, overflows);
        let mut running = Loop::new(self, sender);
        let runtime = Arc::clone(&running.own.runtime);
        let state_dir = running.own.history.folder().to_owned();
        running.begin(async move {
            aside::give_back_all(&*runtime, &state_dir).await;
            attempt::end_all(&*runtime).await;
            Came::GivenBackAll
        });
        let (api, health) = (running.own.api.clone(), Arc::clone(&running.own.health));
        let asked = kubelet::verifies(running.own.kubelet_verifies, &api, &health);
        let mut asked = std::pin::pin!(asked);
        let asked = loop {
            // All can be dropped, or lose nothing when they are not chosen.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(came) = running.under_way.next() => drop(running.came(came)),
                asked = &mut asked => break asked,
            }
        };
        // Nothing that an earlier agent has taken away is to look absent.
        let tidy = async {
            while !running.own.health.is_tidy()
                && let Some(came) = running.under_way.next().await
            {
                running.came(came);
            }
        };
        let _ = timeout(TIDY, tidy).await;
        running.handle(Event::KubeletVerifies(asked)).await;
        let mut gates = std::pin::pin!(gates::follow(Arc::clone(&running.own.runtime)));
        let mut prune_at = Instant::now() + PRUNE_EVERY;
        let mut pruned = running.own.planner.known_images();
        loop {
            running.own.health.beat();
            let wakeup = running.next_wakeup();
            let event = tokio::select! {
                () = stop.cancelled() => break,
                Some(came) = running.under_way.next() => running.came(came),
                change = changes.next() => match change {
                    Some(change) => running.changed(change),
                    None => anyhow::bail!("the watch of pods has ended"),
                },
                Some(event) = gates.next() => Some(match event {
                    Some(PodEvent::Running(pods)) => Event::GatesRun(pods),
                    Some(PodEvent::SandboxStarted(pod)) => Event::SandboxStarted(pod),
                    None => Event::GatesUnknown,
                }),
                Some(moved) = moved.recv() => Some(Event::Moved(moved)),
                Ok(()) = running.own.config.changed() => Some(running.configured()),
                Ok(()) = running.own.rolled_back.changed() => running.rolled_back().await,
                Some(call) = running.own.questions.recv(),
                    if running.asked < questions::AT_ONCE_MAX => {
                        running.called(call);
                        None
                    }
                () = sleep(wakeup) => Some(Event::Tick),
            };
            if let Some(event) = event {
                running.handle(event).await;
            }
            running.tell_health().await;
            let known = running.own.planner.known_images();
            pruned = pruned.min(known);
            if Instant::now() >= prune_at || known >= pruned + PRUNE_AFTER {
                pruned = known;
                prune_at = Instant::now() + PRUNE_EVERY;
                running.prune();
            }
        }
        running.drain().await;
        Ok(())
    }
}

impl<R: ImageRuntime> Loop<R> {
    fn new(own: Pods<R>, moved: Offers<Moved>) -> Self {
        Self {
            own,
            under_way: FuturesUnordered::new(),
            moved,
            telling: 0,
            asked: 0,
            cuts: HashMap::new(),
            away: HashMap::new(),
            is_well: false,
            open: BTreeSet::new(),
            refusals: Refusals::default(),
            report_at: Instant::now(),
        }
    }

    /// Tells the planner, and carries out what it wants.
    async fn handle(&mut self, event: Event) {
        let now = self.own.clock.now();
        let is_pruned = matches!(event, Event::Pruned(_));
        let plan = self.own.planner.handle(now, event);
        self.carry_out(plan).await;
        self.show_circuits();
        let (metrics, planner) = (&self.own.metrics, &self.own.planner);
        if is_pruned {
            metrics.registries.retain(&planner.registries());
        }
        metrics.set_figures(planner.figures(), self.own.clock);
    }

    /// How long until there is something to do if nothing happens.
    fn next_wakeup(&self) -> Duration {
        let planner = &self.own.planner;
        let has_report = planner.has_report() && self.own.health.is_watching();
        let report = has_report.then(|| self.report_at.saturating_duration_since(Instant::now()));
        let next = planner.next_wakeup(self.own.clock.now());
        let all = next.into_iter().chain(report);
        all.fold(BEAT_EVERY, Duration::min)
    }

    /// Written down first: `trylatest images` reads the index.
    async fn rolled_back(&mut self) -> Option<Event> {
        let marks = self.own.rolled_back.borrow_and_update().clone()?;
        self.own.history.set_rolled_back(marks.clone()).await;
        Some(Event::RolledBack(marks))
    }

    fn changed(&mut self, change: Result<PodChange, WatchError>) -> Option<Event> {
        match change {
            Ok(PodChange::Reset(mut pods)) => {
                for pod in &mut pods {
                    self.look_at_gate(pod);
                }
                self.refusals.retain(&pods);
                info!(pods = pods.len(), "watching this node's TryLatest pods");
                self.own.health.set_watching();
                self.own.health.set_interrupted(false);
                Some(Event::Listed(pods))
            }
            Ok(PodChange::Seen(mut pod)) => {
                self.look_at_gate(&mut pod);
                self.own.health.set_interrupted(false);
                Some(Event::Seen(pod))
            }
            Ok(PodChange::Gone(uid)) => {
                self.refusals.forget(&uid);
                Some(Event::Gone(uid))
            }
            Err(error) => {
                self.own.metrics.calls.watch_failed();
                self.own.health.set_interrupted(true);
                warn!(error = %words(&error), "the watch of pods is interrupted; it goes on by itself");
                None
            }
        }
    }

    /// What a gate starts from is the keeper's to look after. One that is left out because many come
    /// at once is seen again when its state changes.
    fn look_at_gate(&self, pod: &mut GatedPod) {
        if let Some(image) = pod.gate_image.take()
            && !pod.terminated
        {
            let pod = pod.id.clone();
            self.own.gates.offer(Waiting { pod, image });
        }
    }

    /// What the planner is to hear of it.
    fn came(&mut self, came: Came) -> Option<Event> {
        match came {
            Came::Heard(event) => Some(event),
            Came::Tried(ended) => {
                self.cuts.remove(&ended.attempt);
                Some(Event::TryEnded(ended))
            }
            Came::Released(pod, release, waits_since, written) => {
                if written == Written::Done {
                    let took = self.own.clock.now().up.saturating_sub(waits_since);
                    self.was_released(&pod, &release, took);
                }
                Some(Event::Written(pod, release, written))
            }
            Came::Settled(pod, release, before, written) => {
                self.telling -= 1;
                if written == Written::Done {
                    self.own.metrics.became(&release, before.as_ref());
                    self.tell_release(&pod, &release, before);
                }
                Some(Event::Settled(pod, release, written))
            }
            Came::TakenAway(image, id, taken) => {
                if let Ok(kept) = &taken {
                    self.follow(image.clone(), id, kept.is_some());
                }
                Some(Event::TakenAway { image, id, taken })
            }
            Came::ThereAgain(id, event) => {
                let given_back =
                    matches!(&event, Event::GivenBack { by_kubelet, .. } if !by_kubelet);
                if let Some(away) = self.away.remove(&id).filter(|away| away.had_copy) {
                    self.own
                        .metrics
                        .handovers
                        .was_away(away.since.elapsed(), given_back);
                }
                Some(event)
            }
            Came::GivenBackAll => {
                self.own.health.set_tidy();
                None
            }
            Came::LookedUp(question, found) => {
                self.asked -= 1;
                self.answer(question, &found);
                None
            }
            Came::Checked(checked, answer) => self.checked(checked, answer),
            Came::Told => {
                self.telling -= 1;
                None
            }
            Came::Done => None,
        }
    }

    fn configured(&mut self) -> Event {
        let config = self.own.config.borrow_and_update().clone();
        Event::Configured(config)
    }

    /// A hand-over needs an agent that sees its end.
    async fn tell_health(&mut self) {
        let is_well = self.own.health.can_hand_over();
        if is_well != self.is_well {
            self.is_well = is_well;
            self.handle(Event::Well(is_well)).await;
        }
    }

    /// In the planner's order: what a pod was told is on disk before.
    async fn carry_out(&mut self, plan: Vec<Action>) {
        for action in plan {
            self.act(action).await;
        }
        self.tell_node();
        self.tell_used();
    }

    async fn record(&mut self, tried: Try) {
        self.own.metrics.tried(&tried);
        debug!(
            image = %tried.image,
            result = tried.result.as_str(),
            digest = tried.digest.as_ref().map(Digest::as_str),
            error = tried.result.failure().map(tracing::field::display),
            took_ms = u64::try_from(tried.duration.as_millis()).unwrap_or(u64::MAX),
            "tried"
        );
        self.own.history.record(tried).await;
    }

    fn begin(&mut self, work: impl Future<Output = Came> + Send + 'static) {
        self.under_way.push(Box::pin(work));
    }

    fn prune(&mut self) {
        let (runtime, history) = (Arc::clone(&self.own.runtime), self.own.history.clone());
        self.begin(async move {
            // Without containerd's word, nothing is known to be gone.
            match runtime.images().await {
                Ok(images) => {
                    let present: Vec<_> = images.into_iter().map(|local| local.image).collect();
                    // What is here is never forgotten, also if its tries could not be written down.
                    let left = history.prune(present.clone()).await;
                    let left = left.map(|left| left.into_iter().chain(present).collect());
                    left.map_or(Came::Done, |left| Came::Heard(Event::Pruned(left)))
                }
                Err(_) => Came::Done,
            }
        });
    }

    /// After SIGTERM: releases that are decided are still written, again if need be, and told; names that are
    /// away are given back; pulls stop, and the next agent tries their pods again.
    async fn drain(mut self) {
        let drained = timeout(DRAIN, async {
            let mut tick = tokio::time::interval(Duration::from_millis(50));
            self.handle(Event::Stopping).await;
            let planner = |running: &Self| {
                let planner = &running.own.planner;
                planner.is_releasing() || planner.is_handing_over()
            };
            while planner(&self) || self.telling > 0 {
                let event = tokio::select! {
                    // Both can be dropped, as in the loop above.
                    Some(came) = self.under_way.next() => self.came(came),
                    _ = tick.tick() => Some(Event::Tick),
                };
                let Some(event) = event else { continue };
                let now = self.own.clock.now();
                let mut plan = self.own.planner.handle(now, event);
                plan.retain(|action| !matches!(action, Action::Try { .. }));
                self.carry_out(plan).await;
            }
        });
        if drained.await.is_err() {
            warn!("some releases or Events could not be written before the end");
        }
    }
}
