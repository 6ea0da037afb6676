//! What others learn: the pods' owners, the node's report, the log and the metrics.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};
use trylatest_containerd::ImageRuntime;
use trylatest_core::digest::Digest;
use trylatest_core::node::NodeReport;
use trylatest_core::plan::Action;
use trylatest_core::pod::PodId;
use trylatest_core::release::Release;
use trylatest_k8s::Notice;

use super::{Came, Loop};

/// The node's report is put together at most this often: that costs more the more images are known, and when many pods
/// start at once, each of them changes it several times.
const REPORT_EVERY: Duration = Duration::from_millis(200);

impl<R: ImageRuntime> Loop<R> {
    pub(super) fn was_released(&mut self, pod: &PodId, release: &Release, took: Duration) {
        self.own.metrics.released(release, took);
        for (name, container) in &release.containers {
            info!(
                namespace = pod.namespace,
                pod = pod.name,
                container = name,
                image = container.image,
                outcome = container.outcome.as_str(),
                digest = container.digest.as_ref().map(Digest::as_str),
                error = container.failure.as_ref().map(tracing::field::display),
                took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                "released"
            );
        }
        if !self.refusals.was_told(&pod.uid, release) {
            self.tell_release(pod, release, None);
        }
    }

    /// Tells the pod's owner, where it is not as `before`.
    pub(super) fn tell_release(&mut self, pod: &PodId, release: &Release, before: Option<Release>) {
        let (api, pod, release) = (self.own.api.clone(), pod.clone(), release.clone());
        self.telling += 1;
        self.begin(async move {
            api.announce(&pod, &release, before.as_ref()).await;
            Came::Told
        });
    }

    /// What the pod's owner should know.
    pub(super) fn tell_owner(&mut self, action: Action) {
        match action {
            Action::Complain(pod, words) => {
                warn!(
                    namespace = pod.namespace,
                    pod = pod.name,
                    error = words,
                    "a pod's settings cannot be used"
                );
                self.tell(pod, Notice::bad_setting(words));
            }
            Action::Overruled(pod, overruled) => {
                self.own.metrics.pods.was_overruled(&overruled);
                let notice = Notice::overruled(&pod, &overruled);
                warn!(
                    namespace = pod.namespace,
                    pod = pod.name,
                    error = notice.note,
                    "another admission policy has changed a pod's pull policies"
                );
                self.tell(pod, notice);
            }
            Action::Unanswered(pod, at, silence) => {
                self.own.metrics.pods.was_unanswered();
                warn!(
                    namespace = pod.namespace,
                    pod = pod.name,
                    "a pod's gate has opened by itself"
                );
                let notice = Notice::unanswered(&pod, at, silence);
                self.tell(pod, notice);
            }
            Action::Unseen(pod, at, answer) => {
                self.own.metrics.pods.was_unseen(&answer);
                warn!(
                    namespace = pod.namespace,
                    pod = pod.name,
                    "a pod's gate has opened by itself, because no sign of the agent reached it"
                );
                let notice = Notice::unseen(&pod, at, &answer);
                self.tell(pod, notice);
            }
            _ => {}
        }
    }

    fn tell(&mut self, pod: PodId, notice: Notice) {
        let api = self.own.api.clone();
        self.telling += 1;
        self.begin(async move {
            api.notify(&pod, &notice).await;
            Came::Told
        });
    }

    /// Says which registries fail, and which are back.
    pub(super) fn show_circuits(&mut self) {
        let mut open = BTreeSet::new();
        for (registry, failure) in self.own.planner.open_circuits() {
            if !self.open.remove(registry) {
                warn!(registry, error = %failure, "the registry fails: pods that have a copy do not wait for it");
                self.own
                    .metrics
                    .registries
                    .circuit_opened(registry, failure);
            }
            open.insert(registry.to_owned());
        }
        for registry in std::mem::replace(&mut self.open, open) {
            info!(registry, "the registry is back");
        }
        let registries = &self.own.metrics.registries;
        registries.set_open_circuits(self.open.iter());
    }

    /// Hands the node's report to its writer when it has changed, once the pods are known.
    pub(super) fn tell_node(&mut self) {
        if !self.own.health.is_watching() || Instant::now() < self.report_at {
            return;
        }
        let Some(images) = self.own.planner.take_report(self.own.clock.now()) else {
            return;
        };
        self.report_at = Instant::now() + REPORT_EVERY;
        self.own.metrics.set_images(&images);
        let planner = &self.own.planner;
        let report = NodeReport::new(images, planner.agent_decides())
            .with_registries(&planner.open_registries());
        send_if_new(&self.own.report, report);
    }

    /// Says which images pods use, once the pods are known.
    pub(super) fn tell_used(&mut self) {
        if !self.own.health.is_watching() {
            return;
        }
        if let Some(used) = self.own.planner.take_used() {
            send_if_new(&self.own.used, used);
        }
    }
}

/// Wakes nobody up for what is known.
fn send_if_new<T: PartialEq>(sender: &watch::Sender<Option<T>>, now: T) {
    sender.send_if_modified(|known| {
        let is_new = known.as_ref() != Some(&now);
        if is_new {
            *known = Some(now);
        }
        is_new
    });
}
