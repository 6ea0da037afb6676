//! What would happen now (`foreseen`), and why: read from what the planner knows, and decided by the same functions.
//! Nothing changes.

mod foreseen;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::Planner;
use super::image::Image;
use super::pod::Pod;
use super::wait::has_spoken;
use crate::explain::{
    Access, After, CopyNow, CopyState, Explanation, Found, ImageNow, Judge, OpenNow, PodNow,
    PullNow, RegistryNow, Subject, User, UserState,
};
use crate::identity::Identity;
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::pod::Start;
use crate::record::Facts;
use crate::release::words::note_not_asked;
use crate::rules::Rules;
use crate::time::Now;
use crate::verdict::{self, CachedCopy, Evidence, Terms, foresee};

/// Most containers that are listed for an image. A node has 110 pods by default.
const USERS_MAX: usize = 250;

/// A pod that comes now.
struct Asker<'a> {
    /// The pod that it is like, if that is one of this node.
    like: Option<&'a Pod>,
    namespace: Option<&'a str>,
    rules: Rules,
}

/// What is known of the image that it asks for.
struct Known<'a> {
    name: &'a ImageName,
    image: Option<&'a Image>,
    facts: Facts,
    /// What is here, or put aside.
    copy: CachedCopy,
    spoken: bool,
}

impl Known<'_> {
    fn terms<'a>(&'a self, rules: &'a Rules, now: Now) -> Terms<'a> {
        Terms {
            facts: &self.facts,
            rules,
            now: now.wall,
        }
    }
}

impl Planner {
    /// The images that [`Planner::explain`] has to know more of; none if there is no such pod.
    pub fn images_of(&self, subject: &Subject) -> Option<Vec<ImageName>> {
        let images = self.asked_for(subject)?;
        Some(images.into_keys().cloned().collect())
    }

    /// What would happen to pods of an image now, or to one like this pod. None if there is no such pod.
    ///
    /// `found` is what was looked up of [`Planner::images_of`], and `keep` how long copies are kept by the agent's
    /// flag.
    pub fn explain(
        &self,
        now: Now,
        subject: &Subject,
        found: &BTreeMap<ImageName, Found>,
        keep: Duration,
    ) -> Option<Explanation> {
        let like = self.pod_of(subject);
        let pod = like.map(|pod| {
            let names = pod.seen.containers.iter();
            let bad = names.filter_map(|container| {
                let error = container.image.as_ref().err()?;
                Some(format!("{}: {error}", container.describe()))
            });
            PodNow {
                namespace: pod.seen.id.namespace.clone(),
                name: pod.seen.id.name.clone(),
                identity: pod.seen.identity.clone(),
                complaints: pod.seen.complaints.iter().cloned().chain(bad).collect(),
            }
        });
        let images = self.asked_for(subject)?.into_iter();
        let images = images.filter_map(|(name, containers)| {
            let asker = self.asker(subject, like, name);
            let found = found.get(name)?;
            Some(self.explain_image(now, name, containers, &asker, found, keep))
        });
        Some(Explanation {
            time: now.wall,
            node: self.node.clone(),
            images: images.collect(),
            pod,
        })
    }

    fn pod_of(&self, subject: &Subject) -> Option<&Pod> {
        let Subject::Pod { namespace, name } = subject else {
            return None;
        };
        let mut pods = self.pods.values();
        pods.find(|pod| pod.seen.id.namespace == *namespace && pod.seen.id.name == *name)
    }

    /// The images, each with the containers that it is asked for.
    fn asked_for<'a>(
        &'a self,
        subject: &'a Subject,
    ) -> Option<BTreeMap<&'a ImageName, Vec<String>>> {
        if let Subject::Image { image, .. } = subject {
            return Some([(image, Vec::new())].into());
        }
        let pod = self.pod_of(subject)?;
        let mut images: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for container in &pod.seen.containers {
            if let Ok(image) = &container.image {
                images
                    .entry(image)
                    .or_default()
                    .push(container.name.clone());
            }
        }
        Some(images)
    }

    fn asker<'a>(
        &'a self,
        subject: &'a Subject,
        like: Option<&'a Pod>,
        name: &ImageName,
    ) -> Asker<'a> {
        let namespace = match subject {
            Subject::Image { namespace, .. } => namespace.as_deref(),
            Subject::Pod { namespace, .. } => Some(namespace.as_str()),
        };
        let rules = match like {
            Some(pod) => Rules::of(&pod.seen, Some(name), &self.rules),
            None => Rules {
                identity: Identity {
                    namespace: namespace.unwrap_or_default().to_owned(),
                    service_account: "default".to_owned(),
                    pull_secrets: Vec::new(),
                },
                ..self.rules.by_default(namespace, Some(name))
            },
        };
        Asker {
            like,
            namespace,
            rules,
        }
    }

    fn explain_image(
        &self,
        now: Now,
        name: &ImageName,
        containers: Vec<String>,
        asker: &Asker<'_>,
        found: &Found,
        keep: Duration,
    ) -> ImageNow {
        let image = self.images.get(name);
        // A name without a copy is not there before a hand-over either.
        let away = image.and_then(Image::away);
        let aside = away.and_then(|kept| kept.digest.clone());
        let copy = match aside.clone() {
            Some(digest) => CachedCopy::Usable {
                digest,
                size_bytes: 0,
            },
            None => found.copy.clone(),
        };
        let known = Known {
            name,
            image,
            facts: self.knowledge.facts(name),
            copy,
            spoken: has_spoken(name, &self.knowledge),
        };
        let like = asker.like.map(|pod| &pod.seen);
        let (users, more_users) = self.users(now, name);
        let last = self.knowledge.last_try(name).cloned();
        let record = found.record.as_ref();
        ImageNow {
            image: name.clone(),
            containers,
            now: self.foreseen(now, asker, &known),
            after: self.after(now, asker, &known),
            copy: copy_now(&known, aside.is_some()),
            access: self.access(&known),
            kept: found.kept.clone().map(|kept| {
                let kept = kept.into_iter();
                kept.map(Into::into).collect()
            }),
            tries: record.map_or_else(|| last.into_iter().collect(), |r| r.tries.clone()),
            week: record.map(|record| record.week),
            rules: self.rules.in_force(like, asker.namespace, name, keep),
            registry: self.registry(now, name),
            pull: image.and_then(|image| pull(now, image)),
            users,
            more_users,
        }
    }

    /// What follows from each class of failures.
    fn after(&self, now: Now, asker: &Asker<'_>, known: &Known<'_>) -> Vec<After> {
        let identity = &asker.rules.identity;
        let after = FailureClass::ALL.map(|class| {
            let terms = known.terms(&asker.rules, now);
            let decision = foresee(Failure::new(class, ""), &known.copy, terms);
            let (mut outcome, mut note) = (decision.outcome, decision.note);
            let spared = self.spared_by(now, known.name, identity);
            if let (Outcome::HandedOver, Some(failure)) = (outcome, spared) {
                let evidence = Evidence::of_look(failure.clone(), known.copy.clone());
                let settled = verdict::settle(&evidence, terms);
                outcome = settled.outcome;
                note = note_not_asked(outcome, settled.note);
            }
            After {
                class,
                outcome,
                note,
            }
        });
        after.into()
    }

    fn access(&self, known: &Known<'_>) -> Access {
        let facts = &known.facts;
        let digest = known.copy.digest();
        let is_known = |digest| facts.confirmed_at(digest).is_some();
        let pulled_for = facts.private_to.clone().unwrap_or_default();
        Access {
            needs_credentials: facts.needs_credentials,
            everybodys: digest.is_some_and(|digest| facts.is_everybodys(digest)),
            judge: if self.rules.kubelet_verifies {
                Judge::Kubelet
            } else if self.rules.gives_without_proof() {
                Judge::Nobody
            } else {
                Judge::Agent
            },
            pulled_for: if digest.is_some_and(is_known) {
                pulled_for
            } else {
                Vec::new()
            },
        }
    }

    fn registry(&self, now: Now, name: &ImageName) -> RegistryNow {
        let open = self.circuits.of(name).map(|open| OpenNow {
            failure: open.failure.clone(),
            failed: open.failed_at(),
            probe: now.wall + open.probe_at.saturating_sub(now.up),
        });
        RegistryNow {
            name: name.registry().to_owned(),
            open,
        }
    }

    /// The containers that use an image or wait for it, and how many more there are.
    fn users(&self, now: Now, name: &ImageName) -> (Vec<User>, usize) {
        let pods = self.pods.values().filter(|pod| !pod.seen.terminated);
        let mut users: Vec<User> = pods.flat_map(|pod| users_of(now, pod, name)).collect();
        users.sort_by(|a, b| {
            (a.state, &a.namespace, &a.pod, &a.container).cmp(&(
                b.state,
                &b.namespace,
                &b.pod,
                &b.container,
            ))
        });
        let more = users.len().saturating_sub(USERS_MAX);
        users.truncate(USERS_MAX);
        (users, more)
    }
}

fn users_of(now: Now, pod: &Pod, name: &ImageName) -> Vec<User> {
    let containers = pod.seen.containers.iter();
    let containers = containers.filter(|container| container.image.as_ref() == Ok(name));
    let users = containers.map(|container| {
        let waits = pod.round.as_ref().map(|round| wall_at(now, round.began));
        let release = pod.released.as_ref().filter(|_| waits.is_none());
        let given = release.and_then(|release| release.containers.get(&container.name));
        let start = pod.seen.starts.get(&container.name);
        let state = match start {
            Some(Start::Started { .. }) => UserState::Runs,
            Some(Start::Wanting(_)) => UserState::Fails,
            _ if given.is_some_and(|given| given.outcome == Outcome::Refused) => UserState::Refused,
            _ if given.is_some() || pod.seen.is_unheld() => UserState::Starts,
            _ => UserState::Waits,
        };
        let runs = match start {
            Some(Start::Started { digest, .. }) => digest.clone(),
            _ => None,
        };
        User {
            namespace: pod.seen.id.namespace.clone(),
            pod: pod.seen.id.name.clone(),
            container: container.name.clone(),
            state,
            since: waits.or_else(|| Some(pod.decided.unwrap_or(release?.time))),
            outcome: given.map(|given| given.outcome),
            digest: runs.or_else(|| given?.digest.clone()),
        }
    });
    users.collect()
}

fn copy_now(known: &Known<'_>, is_aside: bool) -> CopyNow {
    let facts = &known.facts;
    let (state, why, size) = match &known.copy {
        _ if is_aside => (CopyState::Aside, None, None),
        CachedCopy::Usable { size_bytes, .. } => (CopyState::Usable, None, Some(*size_bytes)),
        CachedCopy::Absent => (CopyState::Absent, None, None),
        CachedCopy::Unusable { why } => (CopyState::Unusable, Some(why.clone()), None),
        CachedCopy::Unknown { why } => (CopyState::Unknown, Some(why.clone()), None),
    };
    let digest = known.copy.digest();
    CopyNow {
        state,
        why,
        digest: digest.cloned(),
        size_bytes: size,
        confirmed: digest.and_then(|digest| facts.confirmed_at(digest)),
        rolled_back: digest.and_then(|digest| facts.rolled_back_here(digest).cloned()),
        tag: facts.confirmed.clone(),
    }
}

fn pull(now: Now, image: &Image) -> Option<PullNow> {
    if let Some(handover) = image.handover.as_deref() {
        return Some(PullNow {
            by_kubelet_for: Some(handover.identity.clone()),
            began: handover.began().wall,
            bytes: 0,
            total_bytes: None,
            stands_still: handover.is_overdue(now),
        });
    }
    let running = image.attempt.as_deref().filter(|running| running.asks())?;
    Some(PullNow {
        by_kubelet_for: None,
        began: running.started.wall,
        bytes: running.flow.bytes,
        total_bytes: running.flow.total_bytes,
        stands_still: running.stalled.is_some(),
    })
}

/// The wall clock at this time.
fn wall_at(now: Now, at: Duration) -> Timestamp {
    now.wall - now.up.saturating_sub(at)
}
