//! Whether pods run what was asked for.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use trylatest_core::digest::Digest;
use trylatest_core::outcome::Outcome;
use trylatest_core::release::ContainerRelease;

use crate::pods::{Gate, Label, OurContainer, SeenPod, runs};

/// What is asked of every container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// It does not run a copy because its try had failed.
    NotOld,
    /// The registry has confirmed its copy when it started, and all run the same.
    Fresh,
}

/// What a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// What the tag pointed to.
    Current,
    /// What its rollout had on the node; nobody asked.
    Same,
    /// What was there; nobody asked first.
    NotHeld,
    /// What was there, and the tag has moved since.
    Moved,
    /// What has come since its try failed, and nobody has seen from where; or the registry has confirmed it, and nobody
    /// knows its digest.
    Unseen,
    /// A copy whose try had failed.
    Old,
    /// Nothing: neither a pull nor a copy.
    Unavailable,
    /// Nothing: it must not use the copy.
    Refused,
    /// What the kubelet still pulls, or an answer is waited for.
    Pending,
    /// Nobody knows: no agent answered.
    Unanswered,
    /// What the kubelet has pulled, because another policy says `Always`.
    Always,
    /// Nobody knows: the pod is none of ours.
    NotTryLatest,
    /// What the tag pointed to, but other pods of the workload run another digest.
    Skewed,
}

impl State {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Same => "same",
            Self::NotHeld => "not-held",
            Self::Moved => "moved",
            Self::Unseen => "unknown copy",
            Self::Old => "old copy",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Pending => "pending",
            Self::Unanswered => "unanswered",
            Self::Always => "always",
            Self::NotTryLatest => "not TryLatest",
            Self::Skewed => "skewed",
        }
    }

    /// Whether the copy that its release names is what it runs.
    const fn runs(self) -> bool {
        match self {
            Self::Current
            | Self::Same
            | Self::NotHeld
            | Self::Moved
            | Self::Unseen
            | Self::Old
            | Self::Skewed => true,
            Self::Unavailable
            | Self::Refused
            | Self::Pending
            | Self::Unanswered
            | Self::Always
            | Self::NotTryLatest => false,
        }
    }

    const fn is_enough(self, demand: Demand) -> bool {
        match self {
            Self::Current | Self::Always => true,
            Self::Same | Self::NotHeld | Self::Moved | Self::Unseen | Self::Skewed => {
                matches!(demand, Demand::NotOld)
            }
            Self::Old
            | Self::Unavailable
            | Self::Refused
            | Self::Pending
            | Self::Unanswered
            | Self::NotTryLatest => false,
        }
    }
}

/// A container, and whether it is as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Checked {
    pub(super) pod: String,
    pub(super) node: Option<String>,
    pub(super) container: String,
    pub(super) image: String,
    pub(super) state: State,
    pub(super) ok: bool,
    /// It changes by itself, soon.
    #[serde(skip)]
    pub(super) waits: bool,
    pub(super) digest: Option<Digest>,
    /// In words.
    pub(super) words: String,
}

/// All of a workload's containers.
#[derive(Debug)]
pub(super) struct Judgement {
    pub(super) pods: usize,
    /// Empty if none of the pods is a TryLatest pod.
    pub(super) containers: Vec<Checked>,
}

/// Judges these pods.
pub(super) fn judge(pods: &[Pod], demand: Demand) -> Judgement {
    let seen: Vec<_> = pods.iter().map(SeenPod::of).collect();
    let mut containers: Vec<_> = seen.iter().flat_map(|pod| of_pod(pod, demand)).collect();
    if seen.iter().all(|pod| pod.label == Label::Missing) {
        containers.clear();
    }
    confirm_same(&mut containers);
    if demand == Demand::Fresh {
        doubt(&mut containers);
        compare(&mut containers);
    }
    for container in &mut containers {
        container.ok = container.state.is_enough(demand);
    }
    Judgement {
        pods: pods.len(),
        containers,
    }
}

fn of_pod(pod: &SeenPod, demand: Demand) -> Vec<Checked> {
    let checked = |container: &str, image: &str, (state, words): (State, String)| Checked {
        pod: pod.name.clone(),
        node: pod.node.clone(),
        container: container.to_owned(),
        image: image.to_owned(),
        state,
        ok: state.is_enough(demand),
        waits: state == State::Pending,
        digest: known(pod, container).and_then(runs).cloned(),
        words,
    };
    if pod.label == Label::Missing {
        let words = "it was created without TryLatest: the policies were not there, or its template did not say so";
        return vec![checked("-", "-", (State::NotTryLatest, words.to_owned()))];
    }
    let ours = pod.ours.iter();
    ours.map(|container| checked(&container.name, &container.image, state(pod, container)))
        .collect()
}

/// What was said of a container, if it has started from that.
fn known<'a>(pod: &'a SeenPod, container: &str) -> Option<&'a ContainerRelease> {
    pod.released(container).filter(|_| !pod.is_unanswered())
}

fn state(pod: &SeenPod, container: &OurContainer) -> (State, String) {
    if container.always {
        let words = "another policy says Always: the kubelet asks the registry itself";
        return (State::Always, words.to_owned());
    }
    let Some(release) = known(pod, &container.name) else {
        return match &pod.gate {
            Gate::Unanswered if pod.is_unanswered() && pod.release.is_some() => {
                let words = "no agent had answered when it last started; its release was not for that start";
                (State::Unanswered, words.to_owned())
            }
            Gate::Pending | Gate::Waiting(_) => {
                (State::Pending, "it waits for its agent".to_owned())
            }
            Gate::Wanting(why) => (State::Pending, why.clone()),
            // Agents write to it after its start. Of one that has ended, they say nothing more.
            Gate::Missing if pod.label == Label::Unheld && !pod.over => {
                let words = "its agent has not reported yet what it started from";
                (State::Pending, words.to_owned())
            }
            Gate::Refused(why) => (State::Refused, why.clone()),
            Gate::Opened | Gate::Unanswered | Gate::Missing => {
                let words = "no agent has said what it started from";
                (State::Unanswered, words.to_owned())
            }
        };
    };
    (released(release), words(release))
}

fn released(release: &ContainerRelease) -> State {
    match release.outcome {
        // Somebody may have pointed the name back to an older copy before it started again.
        Outcome::Fresh | Outcome::Unchanged | Outcome::Same | Outcome::Fallback
            if release.runs_unproven =>
        {
            State::Unseen
        }
        // Its image's name has been moved since, and it has started again from that, in spite of its rollout.
        Outcome::Fresh | Outcome::Unchanged
            if release.runs.is_some() && release.rollout.is_some() =>
        {
            State::Same
        }
        Outcome::Fresh | Outcome::Unchanged => State::Current,
        Outcome::Same => State::Same,
        // The registry had confirmed what it has started again from.
        Outcome::Fallback if release.runs.is_some() => State::Current,
        Outcome::Fallback if release.unproven => State::Unseen,
        Outcome::Fallback => State::Old,
        Outcome::NotHeld if release.moved.is_some() => State::Moved,
        Outcome::NotHeld => State::NotHeld,
        Outcome::HandedOver => State::Pending,
        Outcome::Unavailable => State::Unavailable,
        Outcome::Refused => State::Refused,
    }
}

/// Without an age, so that the same release always reads the same.
fn words(release: &ContainerRelease) -> String {
    let digest = release.digest.as_ref().map_or("no copy", Digest::short);
    let mut words = match release.confirmed {
        Some(confirmed) => format!("{digest}, last confirmed {confirmed:.0}"),
        None => digest.to_owned(),
    };
    for more in [
        release.failure.as_ref().map(ToString::to_string),
        release.note.clone(),
    ]
    .into_iter()
    .flatten()
    {
        words.push_str("; ");
        words.push_str(&more);
    }
    words
}

/// A pod that took what its rollout had is current if a pod on its node got that from the registry.
fn confirm_same(containers: &mut [Checked]) {
    let current: Vec<_> = containers
        .iter()
        .filter(|container| container.state == State::Current)
        .map(|c| (c.node.clone(), c.image.clone(), c.digest.clone()))
        .collect();
    for container in containers.iter_mut().filter(|c| c.state == State::Same) {
        let own = (
            container.node.clone(),
            container.image.clone(),
            container.digest.clone(),
        );
        if container.digest.is_some() && current.contains(&own) {
            container.state = State::Current;
        }
    }
}

/// The digests that run of one container's image.
#[derive(Default)]
struct Digests<'a> {
    /// All of them.
    all: BTreeSet<&'a Digest>,
    /// Those that the tag pointed to when a pod started.
    current: BTreeSet<&'a Digest>,
}

impl Digests<'_> {
    /// Why several run, if several do.
    fn skew(&self) -> Option<String> {
        let count = self.all.len();
        let why = match self.current.len() {
            _ if count < 2 => return None,
            0 | 1 => "some run a copy that the registry did not confirm when they started",
            _ => "its tag has moved during the rollout",
        };
        Some(format!(
            "; the workload's pods run {count} digests of this image: {why}"
        ))
    }
}

/// Of what has no digest, nobody can say whether all pods run the same. The kubelet does not say what it has pulled for
/// an image volume, for example.
fn doubt(containers: &mut [Checked]) {
    let current = containers.iter_mut().filter(|c| c.state == State::Current);
    for container in current.filter(|c| c.digest.is_none()) {
        container.state = State::Unseen;
        container
            .words
            .push_str("; without its digest, it cannot be compared with what other pods run");
    }
}

/// The registry has confirmed what these pods run when they started, and yet not all of the workload run the same.
fn compare(containers: &mut [Checked]) {
    let key = |container: &Checked| (container.container.clone(), container.image.clone());
    let mut digests: BTreeMap<(String, String), Digests<'_>> = BTreeMap::new();
    for container in containers.iter() {
        if let Some(digest) = &container.digest
            && container.state.runs()
        {
            let digests = digests.entry(key(container)).or_default();
            digests.all.insert(digest);
            if container.state == State::Current {
                digests.current.insert(digest);
            }
        }
    }
    let skews = digests.into_iter();
    let skews: BTreeMap<_, _> = skews
        .filter_map(|(key, digests)| Some((key, digests.skew()?)))
        .collect();
    for container in containers.iter_mut().filter(|c| c.state == State::Current) {
        if let Some(words) = skews.get(&key(container)) {
            container.state = State::Skewed;
            container.words.push_str(words);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pods::tests::{digest_of, gate_status, pod, release, unanswered};

    fn states(pods: &[Pod], demand: Demand) -> Vec<(State, bool)> {
        let judged = judge(pods, demand);
        judged.containers.iter().map(|c| (c.state, c.ok)).collect()
    }

    #[test]
    fn each_outcome_is_enough_or_not() {
        use State::{Current, Moved, NotHeld, Old, Pending, Refused, Same, Unavailable};
        for (outcome, state, not_old, fresh) in [
            ("fresh", Current, true, true),
            ("unchanged", Current, true, true),
            ("same", Same, true, false),
            ("not-held", NotHeld, true, false),
            ("fallback", Old, false, false),
            ("handed-over", Pending, false, false),
            ("unavailable", Unavailable, false, false),
            ("refused", Refused, false, false),
        ] {
            let pods = [pod("1", "n", &release(outcome, "a"))];
            assert_eq!(
                states(&pods, Demand::NotOld),
                [(state, not_old)],
                "{outcome}"
            );
            assert_eq!(states(&pods, Demand::Fresh), [(state, fresh)], "{outcome}");
        }
        let mut moved = release("not-held", "a");
        moved["moved"] = json!(digest_of("b"));
        assert_eq!(
            states(&[pod("1", "n", &moved)], Demand::Fresh),
            [(Moved, false)]
        );
    }

    #[test]
    fn the_same_as_a_current_pod_of_the_node_is_current() {
        let pods = [
            pod("1", "n", &release("fresh", "a")),
            pod("2", "n", &release("same", "a")),
            pod("3", "other", &release("same", "a")),
        ];
        let states = states(&pods, Demand::Fresh);
        assert_eq!(
            states,
            [
                (State::Current, true),
                (State::Current, true),
                (State::Same, false)
            ]
        );
    }

    #[test]
    fn a_tag_that_moved_during_the_rollout_is_not_fresh() {
        let pods = [
            pod("1", "n", &release("fresh", "a")),
            pod("2", "m", &release("fresh", "b")),
        ];
        assert_eq!(states(&pods, Demand::NotOld), [(State::Current, true); 2]);
        assert_eq!(states(&pods, Demand::Fresh), [(State::Skewed, false); 2]);
        let words = &judge(&pods, Demand::Fresh).containers[0].words;
        let said = "run 2 digests of this image: its tag has moved during the rollout";
        assert!(words.contains(said), "{words}");
    }

    #[test]
    fn a_copy_that_a_pod_fell_back_to_is_no_moved_tag() {
        for outcome in ["fallback", "same", "not-held"] {
            let pods = [
                pod("1", "n", &release("fresh", "a")),
                pod("2", "n", &release("unchanged", "a")),
                pod("3", "m", &release(outcome, "b")),
            ];
            let judged = judge(&pods, Demand::Fresh);
            let [first, second, other] = &judged.containers[..] else {
                panic!("{judged:?}");
            };
            for current in [first, second] {
                assert_eq!((current.state, current.ok), (State::Skewed, false));
                let said = "run 2 digests of this image: some run a copy that the registry did not confirm";
                assert!(current.words.contains(said), "{}", current.words);
                assert!(!current.words.contains("moved"), "{}", current.words);
            }
            assert!(!other.ok && !other.words.contains("digests"), "{other:?}");
        }
        // Where the tag has moved as well, that is said.
        let pods = [
            pod("1", "n", &release("fresh", "a")),
            pod("2", "n", &release("fresh", "b")),
            pod("3", "m", &release("fallback", "c")),
        ];
        let words = &judge(&pods, Demand::Fresh).containers[0].words;
        let said = "run 3 digests of this image: its tag has moved during the rollout";
        assert!(words.contains(said), "{words}");
    }

    #[test]
    fn a_copy_that_a_pod_must_not_use_is_none_that_runs() {
        for outcome in ["refused", "unavailable"] {
            let pods = [
                pod("1", "n", &release("fresh", "a")),
                pod("2", "m", &release(outcome, "b")),
            ];
            assert_eq!(
                states(&pods, Demand::Fresh)[0],
                (State::Current, true),
                "{outcome}"
            );
        }
    }

    #[test]
    fn a_copy_without_a_digest_is_unknown_to_those_who_compare() {
        let mut pulled = release("fresh", "a");
        pulled["digest"].take();
        let pods = [
            pod("1", "n", &pulled),
            pod("2", "m", &release("fresh", "b")),
        ];
        let [unknown, known] = [(State::Unseen, false), (State::Current, true)];
        assert_eq!(states(&pods, Demand::Fresh), [unknown, known]);
        let words = &judge(&pods, Demand::Fresh).containers[0].words;
        assert!(words.contains("cannot be compared"), "{words}");
        assert_eq!(states(&pods, Demand::NotOld), [known, known]);
    }

    #[test]
    fn an_image_volume_is_judged_like_a_container() {
        let mut object = serde_json::to_value(pod("1", "n", &json!(null))).unwrap();
        let mut data = release("fallback", "a");
        data["image"] = json!("reg.example/data:1");
        let released = json!({"time": "2026-01-01T12:00:00Z", "containers": {"volume/data": data}});
        object["metadata"]["annotations"] = json!({
            "trylatest.dev/volumes": "data,unmounted", "trylatest.dev/released": released.to_string(),
        });
        object["spec"]["volumes"] = json!([
            {"name": "data", "image": {"reference": "reg.example/data:1", "pullPolicy": "IfNotPresent"}},
            {"name": "unmounted", "image": {"reference": "reg.example/data:1", "pullPolicy": "IfNotPresent"}},
        ]);
        object["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}]);
        let pods = [serde_json::from_value(object).unwrap()];
        assert_eq!(states(&pods, Demand::NotOld), [(State::Old, false)]);
    }

    fn without_release(gate: &Value) -> Pod {
        let mut object = serde_json::to_value(pod("1", "n", &json!(null))).unwrap();
        object["metadata"]["annotations"] = json!({"trylatest.dev/containers": "app"});
        object["status"]["initContainerStatuses"] = json!([gate_status(gate)]);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_pod_that_nobody_answered_is_not_vouched_for() {
        let alone =
            without_release(&json!({"terminated": {"exitCode": 0, "message": "unanswered"}}));
        assert_eq!(
            states(&[alone], Demand::NotOld),
            [(State::Unanswered, false)]
        );
        let waits = without_release(&json!({"running": {}}));
        let judged = judge(&[waits], Demand::NotOld);
        assert!(judged.containers[0].waits);
    }

    #[test]
    fn a_pod_without_a_gate_is_waited_for_until_its_agent_reports() {
        let mut unheld = without_release(&json!({}));
        let labels = unheld.metadata.labels.as_mut().unwrap();
        labels.insert("trylatest.dev/gated".into(), "none".into());
        unheld.spec.as_mut().unwrap().init_containers = None;
        let judged = judge(&[unheld.clone()], Demand::NotOld);
        let [container] = &judged.containers[..] else {
            panic!("{judged:?}");
        };
        assert_eq!((container.state, container.ok), (State::Pending, false));
        assert!(container.waits);
        // It has ended before its agent saw what it ran.
        unheld.status.as_mut().unwrap().phase = Some("Succeeded".into());
        let judged = states(&[unheld], Demand::NotOld);
        assert_eq!(judged, [(State::Unanswered, false)]);
    }

    /// Its node has rebooted, and its agent was not there when the gate ran again.
    #[test]
    fn a_release_of_an_earlier_start_vouches_for_nothing() {
        let released = pod("1", "n", &release("fresh", "a"));
        let (end, before) = ("2026-01-02T12:00:20Z", "2026-01-01T12:00:20Z");
        for unseen in [None, Some(before)] {
            let pods = [unanswered(&released, end, unseen)];
            for demand in [Demand::NotOld, Demand::Fresh] {
                assert_eq!(states(&pods, demand), [(State::Unanswered, false)]);
            }
            let judged = judge(&pods, Demand::NotOld);
            assert_eq!(judged.containers[0].digest, None);
            let words = &judged.containers[0].words;
            assert!(words.contains("was not for that start"), "{words}");
        }
        // The agent has written what it started from then.
        let pods = [unanswered(&released, end, Some(end))];
        assert_eq!(states(&pods, Demand::NotOld), [(State::Current, true)]);
    }

    #[test]
    fn pods_without_trylatest_are_no_success() {
        let mut plain = pod("1", "n", &release("fresh", "a"));
        plain.metadata.labels = None;
        let ours = pod("2", "n", &release("fresh", "a"));
        assert!(
            judge(&[plain.clone()], Demand::NotOld)
                .containers
                .is_empty()
        );
        let mixed = states(&[plain, ours], Demand::NotOld);
        assert_eq!(
            mixed,
            [(State::NotTryLatest, false), (State::Current, true)]
        );
    }

    #[test]
    fn a_container_that_another_policy_has_made_always_asks_the_registry() {
        let mut always = pod("1", "n", &json!(null));
        let spec = always.spec.as_mut().unwrap();
        spec.containers[0].image_pull_policy = Some("Always".into());
        assert_eq!(states(&[always], Demand::Fresh), [(State::Always, true)]);
    }
}
