//! The end of a try: what is remembered, and whom it affects.

use std::time::Duration;

use jiff::Timestamp;

use super::Planner;
use super::circuit::Heard;
use super::event::{Action, Ask, TryEnded};
use super::image::Attempt;
use super::round::Round;
use super::turns::TURN;
use super::wait::{Cause, has_spoken};
use crate::image::ImageName;
use crate::knowledge::Knowledge;
use crate::outcome::{Failure, FailureClass};
use crate::record::{Facts, LocalCopy, Try};
use crate::time::Now;
use crate::verdict::{CachedCopy, Evidence, Terms, has_to_ask};

impl Planner {
    /// A try has ended: it is remembered, and everybody who waits for it moves on.
    pub(super) fn try_ended(&mut self, now: Now, ended: TryEnded, plan: &mut Vec<Action>) {
        let TryEnded {
            image: name,
            attempt: id,
            evidence,
        } = ended;
        let Some(image) = self.images.get_mut(&name) else {
            return;
        };
        let Some(attempt) = image.attempt.take_if(|attempt| attempt.id == id) else {
            return;
        };
        let copy = evidence.copy.digest();
        let is_in_vain = match attempt.ask {
            Ask::Always => false,
            Ask::IfAbsent => !self.knowledge.vouches_for(&name, copy),
            Ask::Never(_) => copy.is_none(),
        };
        if is_in_vain {
            image.misses(now);
            return self.step(now, &name, |_, _| Cause::TryMissed, plan);
        }
        let failure = evidence.result.failure();
        if attempt.asks() || failure.is_none() {
            image.finish(failure.is_some());
        }
        if attempt.asks() && !failure.is_some_and(is_silence) {
            image.is_patient = false;
            image.started_over = None;
        }
        if failure.is_none() {
            self.spared.forget(&name);
        }
        let began = attempt.started.up;
        // A success, or a registry's answer, says something about a pod that was there when the try began: the
        // tag may have moved before. That the registry gave none is as true for a pod that came meanwhile, and
        // spares it the same wait, unless the try was cut for that pod.
        let is_shared = attempt.asks() && !attempt.is_cut && failure.is_some_and(is_silence);
        let unasked = Unasked::of(now, &attempt.ask, &name, &self.knowledge);
        let is_for = |round: &Round| {
            unasked
                .as_ref()
                .is_none_or(|unasked| unasked.serves(round, &name))
        };
        let cause = |round: &Round| Cause::TryEnded {
            evidence: &evidence,
            is_good: is_for(round) && (is_shared || began >= round.since),
        };
        let asked = attempt.asks();
        let was_shared = attempt.is_cut || attempt.stalled.is_some();
        let had_answer = attempt.has_answer();
        let class = failure.map(|failure| failure.class);
        let is_refused = class == Some(FailureClass::Unauthorized);
        let may_be_private = is_refused || class == Some(FailureClass::NotFound);
        // Where the agent decides who may have it, an agent that ends now must not take that with it.
        let is_kept = is_refused && !self.rules.kubelet_verifies;
        let is_kept = is_kept && !self.knowledge.facts(&name).needs_credentials;
        let was_told = attempt.is_recorded && failure.is_some_and(is_silence);
        if was_told {
            // It was remembered when nothing came.
        } else if asked && may_be_private && !is_kept {
            // A hand-over may follow, and they are remembered as one.
            image.refused = Some(Box::new((*attempt, evidence.clone())));
            if is_refused {
                self.knowledge.refused(&name);
            }
        } else {
            self.remember(now, &name, &attempt, &evidence, plan);
        }
        self.step(now, &name, |_, round| cause(round), plan);
        let is_news = |outage: &Failure| {
            let is_limit = outage.class == FailureClass::RateLimited;
            outage.class.is_outage() && !was_shared && (!had_answer || is_limit)
        };
        if asked {
            let is_news = failure.is_some_and(is_news);
            self.registry_tried(now, &name, began, failure, is_news, plan);
        }
    }

    /// What a try that asked says of its registry, if an outage would be news.
    fn registry_tried(
        &mut self,
        now: Now,
        name: &ImageName,
        began: Duration,
        failure: Option<&Failure>,
        is_news: bool,
        plan: &mut Vec<Action>,
    ) {
        match failure {
            Some(outage) if !outage.class.is_answer() => {
                if is_news {
                    self.registry_failed(now, name, now.up.saturating_sub(began), outage);
                }
            }
            _ => {
                let is_refusal = failure.is_some();
                self.registry_answered(now, name, Heard { began, is_refusal }, plan);
            }
        }
    }

    /// Where nobody has asked the registry, there is nothing to remember.
    pub(super) fn remember(
        &mut self,
        now: Now,
        name: &ImageName,
        attempt: &Attempt,
        evidence: &Evidence,
        plan: &mut Vec<Action>,
    ) {
        if attempt.asks() {
            self.add_try(evidence.to_try(name, attempt.started, now, None), plan);
            if evidence.result.failure().is_none() {
                self.knowledge.has_digests(name, &evidence.digests);
            }
        }
    }

    /// A try stands still without a word from its registry. It is remembered now: it may go on for minutes, and an
    /// agent that begins again meanwhile is to know.
    pub(super) fn remember_silence(&mut self, now: Now, name: &ImageName, plan: &mut Vec<Action>) {
        let attempt = self
            .images
            .get_mut(name)
            .and_then(|i| i.attempt.as_deref_mut());
        let Some(attempt) = attempt.filter(|attempt| attempt.asks()) else {
            return;
        };
        let failure = attempt.flow.stood_still();
        let (began, was_recorded) = (attempt.started, attempt.is_recorded);
        attempt.is_recorded = true;
        // A stall is silence, however short the deadline is.
        let took = now.up.saturating_sub(began.up).max(TURN);
        self.registry_failed(now, name, took, &failure);
        if !was_recorded {
            // Nothing has come, so it is what it was.
            let copy = match self.knowledge.facts(name).copy {
                Some(LocalCopy { digest, size_bytes }) => CachedCopy::Usable {
                    digest,
                    size_bytes: size_bytes.unwrap_or_default(),
                },
                None => CachedCopy::Unknown { why: String::new() },
            };
            let evidence = Evidence::of_look(failure, copy);
            self.add_try(evidence.to_try(name, began, now, None), plan);
        }
    }

    /// Remembers a try of the agent or a pull of the kubelet.
    pub(super) fn add_try(&mut self, tried: Try, plan: &mut Vec<Action>) {
        self.knowledge.add(&tried);
        self.changed.report = true;
        plan.push(Action::Record(tried));
    }
}

/// A try that has asked nobody.
struct Unasked {
    class: FailureClass,
    facts: Facts,
    spoken: bool,
    now: Timestamp,
}

impl Unasked {
    fn of(now: Now, ask: &Ask, name: &ImageName, knowledge: &Knowledge) -> Option<Self> {
        let Ask::Never(failure) = ask else {
            return None;
        };
        Some(Self {
            class: failure.class,
            facts: knowledge.facts(name),
            spoken: has_spoken(name, knowledge),
            now: now.wall,
        })
    }

    /// Whether it says something to this pod: not to one that may not use every copy.
    fn serves(&self, round: &Round, name: &ImageName) -> bool {
        let (facts, now) = (&self.facts, self.now);
        let must = |rules| has_to_ask(self.class, Terms { facts, rules, now }, self.spoken);
        !round.rules_for(name).is_some_and(must)
    }
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
