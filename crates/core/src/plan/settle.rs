//! What the end of a try, or of a pod's time, means for the containers that wait for it.

use std::time::Duration;

use super::image::Image;
use super::round::Wait;
use super::{Ask, Ended, Limits, Plan, Planner, known};
use crate::image::ImageName;
use crate::outcome::{Failure, FailureClass, Outcome};
use crate::record::Try;
use crate::settings::Settings;
use crate::time::Now;
use crate::verdict::{Copy, Evidence, Known, Terms, judge};

/// A copy that could not be looked at is looked at again after this time, while the try runs.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

impl Planner {
    /// A try has ended.
    pub fn ended(&mut self, now: Now, ended: &Ended) -> Plan {
        let mut plan = Plan::default();
        let name = &ended.image;
        let before = known(&self.images, name);
        let Some(image) = self.images.get_mut(name) else {
            return plan;
        };
        let Some(attempt) = image.attempt.take_if(|a| a.id == ended.attempt) else {
            return plan;
        };
        if attempt.ask == Ask::IfAbsent && ended.after.digest().is_none() {
            image.misses(now);
            self.expect_try(name);
            return self.advance(now, plan);
        }
        let failure = ended.failure.clone().or_else(|| unusable(&ended.after));
        let evidence = Evidence {
            failure: failure.as_ref(),
            before: &ended.before,
            after: &ended.after,
            healed: ended.healed.as_deref(),
        };
        let record = remembered(name, attempt.started, now, evidence, &before, self.limits);
        image.finish(&record);
        if attempt.asks() && !failure.as_ref().is_some_and(is_silence) {
            image.answered = Some(now.up);
        }
        plan.records.push(record);
        let known = known(&self.images, name);
        let Some(image) = self.images.get_mut(name) else {
            return plan;
        };
        for pod in self.pods.values_mut() {
            let Some(round) = &mut pod.round else {
                continue;
            };
            let good = is_good_for(round.since, attempt.started.up, failure.as_ref());
            let overdue = now.up >= round.deadline;
            let terms = terms(&known, &pod.seen.settings, self.limits, now);
            for slot in &mut round.slots {
                if slot.image() != Some(name) {
                    continue;
                }
                if !good && matches!(slot.wait, Wait::Try(_)) {
                    image.queue(now.up);
                    continue;
                }
                if slot.settle(evidence, terms) {
                    continue;
                }
                let failure = failure.clone().unwrap_or_else(no_answer);
                // What waits for more than a try has had its time, whatever the deadline of the round is by
                // now: another container's look may have moved it.
                if overdue || !matches!(slot.wait, Wait::Try(_)) {
                    slot.give_up(failure, &ended.after, terms);
                } else {
                    slot.attempts += 1;
                    slot.failure = Some(failure);
                    image.queue_retry(now, name, &self.node);
                }
            }
        }
        if let Some(failure) = failure.filter(|_| attempt.asks() && !attempt.has_answer()) {
            self.share_silence(now, name, attempt.started.up, &failure, &mut plan);
        }
        self.advance(now, plan)
    }

    /// The try was only a look. Whoever waits for its end waits for the next one; those whose time is up
    /// are looked at once more.
    fn expect_try(&mut self, name: &ImageName) {
        let rounds = self.pods.values_mut().filter_map(|pod| pod.round.as_mut());
        for slot in rounds.flat_map(|round| &mut round.slots) {
            if matches!(&slot.wait, Wait::LastTry(waits) if waits == name) {
                slot.wait = Wait::Try(name.clone());
            }
        }
    }

    /// The copy that was asked for by [`Action::Inspect`](super::Action::Inspect).
    pub fn inspected(&mut self, now: Now, name: &ImageName, copy: &Copy) -> Plan {
        let mut plan = Plan::default();
        let Some(image) = self.images.get(name) else {
            return plan;
        };
        let (running, refusable) = (image.attempt.is_some(), image.may_yet_be_refused());
        let (late, known) = (time_is_up(image), known(&self.images, name));
        let mut timed_out = None;
        for pod in self.pods.values_mut() {
            let Some(round) = &mut pod.round else {
                continue;
            };
            let terms = terms(&known, &pod.seen.settings, self.limits, now);
            for slot in &mut round.slots {
                let unheard = match &slot.wait {
                    Wait::Inspection { image, unheard } if image == name => *unheard,
                    _ => continue,
                };
                if refusable && !unheard {
                    slot.wait_for_first_word(now, name);
                    continue;
                }
                let failure = slot.failure.clone().unwrap_or_else(|| late.clone());
                let evidence = Evidence {
                    failure: Some(&failure),
                    before: copy,
                    after: copy,
                    healed: None,
                };
                if slot.settle(evidence, terms) {
                    if slot.outcome() != Some(Outcome::Unavailable) {
                        timed_out = Some((round.since, failure));
                    }
                } else if !running {
                    slot.give_up(failure, copy, terms);
                } else if matches!(copy, Copy::Unknown { .. }) {
                    slot.wait = Wait::Try(name.clone());
                    round.deadline = now.up + LOOK_AGAIN;
                } else {
                    // As long as bytes flow, a pod with nothing to start from waits.
                    slot.wait = Wait::LastTry(name.clone());
                }
            }
        }
        if let Some((since, failure)) = timed_out {
            let started = Now {
                wall: now.wall - now.up.saturating_sub(since),
                up: since,
            };
            let evidence = Evidence {
                failure: Some(&failure),
                before: copy,
                after: copy,
                healed: None,
            };
            let record = remembered(name, started, now, evidence, &known, self.limits);
            if let Some(image) = self.images.get_mut(name) {
                image.remember(&record);
            }
            plan.records.push(record);
        }
        self.advance(now, plan)
    }
}

fn terms<'a>(known: &'a Known, settings: &'a Settings, limits: Limits, now: Now) -> Terms<'a> {
    Terms {
        known,
        settings,
        allow_unverified_fallback: limits.allow_unverified_fallback,
        now: now.wall,
    }
}

/// What is remembered of a try: the outcome for a pod without settings of its own.
fn remembered(
    name: &ImageName,
    started: Now,
    now: Now,
    evidence: Evidence<'_>,
    known: &Known,
    limits: Limits,
) -> Try {
    let settings = Settings::default();
    let decision = judge(evidence, terms(known, &settings, limits, now));
    let (digest, size_bytes) = match evidence.after {
        Copy::Usable { digest, size_bytes } => (Some(digest.clone()), Some(*size_bytes)),
        Copy::Absent | Copy::Unusable { .. } | Copy::Unknown { .. } => (None, None),
    };
    Try {
        image: name.clone(),
        started: started.wall,
        duration: now.up.saturating_sub(started.up),
        outcome: decision.map_or(Outcome::Unavailable, |decision| decision.outcome),
        failure: evidence.failure.cloned(),
        digest,
        size_bytes,
        copy_unknown: matches!(evidence.after, Copy::Unknown { .. }),
    }
}

/// Whether an ended try says something about a pod that came at `since`.
///
/// A success does if it began after the pod: the tag may have moved in between. So do a registry's
/// answers. That the registry gave none is as true for a pod that came meanwhile, and spares it
/// the same wait.
fn is_good_for(since: Duration, started: Duration, failure: Option<&Failure>) -> bool {
    failure.is_some_and(is_silence) || started >= since
}

/// Whether a failure is none of a registry's answers.
fn is_silence(failure: &Failure) -> bool {
    match failure.class {
        FailureClass::Timeout | FailureClass::Network | FailureClass::Local => true,
        FailureClass::ServerError
        | FailureClass::RateLimited
        | FailureClass::NotFound
        | FailureClass::Unauthorized
        | FailureClass::Invalid
        | FailureClass::Blocked
        | FailureClass::Unknown => false,
    }
}

/// A pull that worked and left nothing to start from is a failure too.
fn unusable(after: &Copy) -> Option<Failure> {
    match after {
        Copy::Usable { .. } => None,
        Copy::Absent => Some(Failure::new(FailureClass::Local, "the image is gone again")),
        Copy::Unusable { why } => Some(Failure::new(
            FailureClass::Invalid,
            format!("no container can start from what was pulled: {why}"),
        )),
        Copy::Unknown { why } => Some(Failure::new(
            FailureClass::Local,
            format!("the copy could not be looked at: {why}"),
        )),
    }
}

fn no_answer() -> Failure {
    Failure::new(FailureClass::Unknown, "no reason was given")
}

/// The pod's time is up before the try has ended.
fn time_is_up(image: &Image) -> Failure {
    let (class, words) = match &image.attempt {
        // Nobody has asked the registry.
        None => (
            FailureClass::Local,
            "the pod's time is up, and this image was still waiting for its turn on this node",
        ),
        Some(attempt) if attempt.flow.flows => (
            FailureClass::Timeout,
            "the pod's time to try is up; the download goes on for the next pod",
        ),
        Some(_) => (
            FailureClass::Timeout,
            "the pod's time to try is up and the registry has not answered",
        ),
    };
    Failure::new(class, words)
}
