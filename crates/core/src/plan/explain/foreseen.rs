//! What comes first for a pod that comes now. This repeats the order in which the planner asks, and a test compares the
//! two.

use super::super::Planner;
use super::super::image::{Attempt, Image};
use super::super::same::Origin;
use super::super::wait::may_yet_be_refused;
use super::{Asker, Known};
use crate::explain::{Foreseen, Step};
use crate::outcome::{Failure, Outcome};
use crate::rules::Rules;
use crate::text;
use crate::time::Now;
use crate::verdict::{self, foresee};

impl Known<'_> {
    /// A pod gets what such a failure means for it, unless it is better off with a try.
    fn at_once(
        &self,
        now: Now,
        rules: &Rules,
        step: Step,
        failure: Failure,
        why: String,
    ) -> Option<Foreseen> {
        let outcome = foresee(failure, &self.copy, self.terms(rules, now)).outcome;
        let gains = self.copy.digest().is_some() && outcome != Outcome::Refused;
        gains.then_some(Foreseen {
            step,
            outcome: Some(outcome),
            why,
        })
    }
}

impl Planner {
    /// What comes first for a pod that comes now, in the order in which the planner asks.
    pub(super) fn foreseen(&self, now: Now, asker: &Asker<'_>, known: &Known<'_>) -> Foreseen {
        let first = self
            .without_a_try(now, asker, known)
            .or_else(|| self.beside_a_try(now, asker, known))
            .or_else(|| self.while_open(now, asker, known));
        first.unwrap_or_else(|| {
            let patience = text::short_duration(asker.rules.try_for);
            let stall = text::short_duration(self.rules.stall_of(known.name));
            let why = match known.copy.digest() {
                Some(_) => format!(
                    "it waits up to {patience} for what the tag points to now, but no longer than {stall} while nothing \
                     moves"
                ),
                None => "there is no copy to fall back to: it waits as long as bytes arrive".to_owned(),
            };
            Foreseen {
                step: Step::Ask,
                outcome: None,
                why,
            }
        })
    }

    /// Of a pod that waits for no try.
    fn without_a_try(&self, now: Now, asker: &Asker<'_>, known: &Known<'_>) -> Option<Foreseen> {
        if asker.like.is_some_and(|pod| pod.seen.is_unheld()) {
            return Some(Foreseen {
                step: Step::NotHeld,
                outcome: Some(Outcome::NotHeld),
                why: "it says hold: none, so it starts as with IfNotPresent; the tag is checked afterwards, for the next \
                      start"
                    .to_owned(),
            });
        }
        if let Some(handover) = known.image.and_then(|image| image.handover.as_deref()) {
            return Some(Foreseen {
                step: Step::Kubelet,
                outcome: None,
                why: format!(
                    "the kubelet pulls it for {} with the credentials it has; it waits for the end of that, up to {}",
                    handover.identity,
                    text::short_duration(asker.rules.try_for)
                ),
            });
        }
        if let Some(same) = self.same_as_rollout(now, asker, known) {
            return Some(same);
        }
        let digest = known.copy.digest();
        let is_look = self.gives_digest(known.name) || self.is_young(now, known.name);
        let is_missing = known.image.is_some_and(Image::is_missing);
        if is_look && !is_missing && self.knowledge.vouches_for(known.name, digest) {
            let why = if known.name.has_digest() {
                "its name is a digest, which cannot move, and the registry has given that before"
            } else {
                "the registry said where the tag points less than `freshness` ago"
            };
            return Some(Foreseen {
                step: Step::Look,
                outcome: Some(Outcome::Unchanged),
                why: why.to_owned(),
            });
        }
        None
    }

    fn same_as_rollout(&self, now: Now, asker: &Asker<'_>, known: &Known<'_>) -> Option<Foreseen> {
        let rollout = self.rollout_of(asker.like?, known.name)?;
        let digest = known.copy.digest()?;
        let origin = rollout.origin(digest)?;
        let terms = known.terms(&asker.rules, now);
        if self.is_moving(now, known.name)
            || !verdict::may_start_unasked(digest, terms, known.spoken)
        {
            return None;
        }
        let outcome = match origin {
            Origin::Given => Outcome::Same,
            Origin::FellBack(class) => {
                let failure = Failure::new(class, "");
                foresee(failure, &known.copy, terms).outcome
            }
        };
        (outcome != Outcome::Refused).then(|| Foreseen {
            step: Step::Same,
            outcome: Some(outcome),
            why: "it says same-digest, and its rollout has this copy on the node".to_owned(),
        })
    }

    /// Of a pod that comes while a try runs that it does not wait for.
    fn beside_a_try(&self, now: Now, asker: &Asker<'_>, known: &Known<'_>) -> Option<Foreseen> {
        let image = known.image?;
        let failure = image
            .attempt
            .as_deref()
            .and_then(Attempt::why_passed_over)?;
        let may_yet_be_refused =
            !asker.rules.without_proof && may_yet_be_refused(known.name, image, &self.knowledge);
        let is_probe = image.is_passed_over(now, false) && !may_yet_be_refused;
        if !image.is_stalled() && !is_probe || self.starts_over(now, known.name) {
            return None;
        }
        let why = format!("the pull that runs is not waited for ({failure})");
        known.at_once(now, &asker.rules, Step::PassedOver, failure, why)
    }

    /// Of a pod that comes while the registry's circuit is open.
    fn while_open(&self, now: Now, asker: &Asker<'_>, known: &Known<'_>) -> Option<Foreseen> {
        let open = self.circuits.of(known.name)?;
        let failure = open.not_asked(now);
        known.copy.digest()?;
        let terms = known.terms(&asker.rules, now);
        let has_to_ask = verdict::has_to_ask(failure.class, terms, known.spoken)
            || known.image.is_some_and(Image::is_missing);
        if has_to_ask || self.may_probe(now, known.name) {
            let why = format!(
                "{}; this pod's own try finds out whether it is back, and the pod hardly waits for that",
                open.not_yet_answered(now).message
            );
            return Some(Foreseen {
                step: Step::Probe,
                outcome: None,
                why,
            });
        }
        let why = failure.message.clone();
        known.at_once(now, &asker.rules, Step::NotAsked, failure, why)
    }
}
