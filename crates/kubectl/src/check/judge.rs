//! Whether pods run what was asked for.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use trylatest_core::digest::Digest;
use trylatest_core::outcome::Outcome;
use trylatest_core::release::ContainerRelease;

use crate::pods::{Gate, Label, OurContainer, SeenPod};

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
        digest: pod
            .released(container)
            .and_then(ContainerRelease::what_runs)
            .cloned(),
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

fn state(pod: &SeenPod, container: &OurContainer) -> (State, String) {
    if container.always {
        let words = "another policy says Always: the kubelet asks the registry itself";
        return (State::Always, words.to_owned());
    }
    let Some(release) = pod.released(&container.name) else {
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
mod tests;
