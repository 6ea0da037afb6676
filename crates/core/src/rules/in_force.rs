//! Which rules are in force, and where each comes from, in words.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{NodeRules, Rule, Rules, Source, share_of_deadline};
use crate::config::{FALLBACK_ON, FRESHNESS, MAX_AGE, Place, Resolved, STALL, TRY};
use crate::image::ImageName;
use crate::keys;
use crate::outcome::FailureClass;
use crate::pod::GatedPod;
use crate::time::written;

/// A rule in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleInForce {
    /// Its key in the configuration, such as `max-age`.
    pub key: String,
    /// What applies.
    pub value: String,
    /// What says so: an annotation, a place in the configuration, or a flag of the agent; `default` if nothing does.
    pub from: String,
    /// The administrator's ceiling, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<String>,
}

const NONE: &str = "none";
const DEFAULT: &str = "default";
const COMMAND: &str = "the command line";

impl NodeRules {
    /// Those for a container with this image of this pod, or of one that sets nothing in this namespace. `keep` is
    /// the agent's flag, which is not among these rules.
    pub fn in_force(
        &self,
        pod: Option<&GatedPod>,
        namespace: Option<&str>,
        image: &ImageName,
        keep: Duration,
    ) -> Vec<RuleInForce> {
        let rules = match pod {
            Some(pod) => Rules::of(pod, Some(image), self),
            None => self.by_default(namespace, Some(image)),
        };
        let namespace = pod.map_or(namespace, |pod| Some(pod.id.namespace.as_str()));
        let said = self.config.resolved(namespace, Some(image)).into_iter();
        let rules = said.map(|said| {
            let (value, from) = match said.key {
                TRY => self.try_in_force(&rules, pod, &said),
                MAX_AGE => max_age(&rules, &said),
                FALLBACK_ON => fallback_on(&rules, &said),
                STALL => (written(self.stall_of(image)), place(&said, "--stall")),
                FRESHNESS => {
                    let from = place(&said, "--freshness");
                    (written(self.freshness_of(image)), from)
                }
                _ => {
                    let kept = self.config.find(None, Some(image), |section| section.keep);
                    (written(kept.unwrap_or(keep)), place(&said, "--keep-for"))
                }
            };
            RuleInForce {
                key: said.key.to_owned(),
                value,
                from,
                ceiling: said.ceiling,
            }
        });
        rules.collect()
    }

    fn try_in_force(
        &self,
        rules: &Rules,
        pod: Option<&GatedPod>,
        said: &Resolved<'_>,
    ) -> (String, String) {
        let value = rules.try_for;
        let is_share = pod.and_then(share_of_deadline) == Some(value);
        let from = if pod.is_some_and(|pod| pod.settings.timeout == Some(value)) {
            annotation(keys::TIMEOUT)
        } else if said.value == Some(written(value))
            || said.value.is_none() && self.try_for == value
        {
            place(said, "--try")
        } else if is_share {
            "a quarter of the pod's activeDeadlineSeconds".to_owned()
        } else {
            Place::Ceilings.to_string()
        };
        (written(value), from)
    }
}

fn max_age(rules: &Rules, said: &Resolved<'_>) -> (String, String) {
    let Some(Rule { value, source }) = rules.max_age else {
        return (NONE.to_owned(), DEFAULT.to_owned());
    };
    let value = written(value);
    let from = match source {
        Source::Pod => annotation(keys::MAX_AGE),
        Source::Command => COMMAND.to_owned(),
        Source::Administrator if said.value.as_ref() == Some(&value) => place(said, DEFAULT),
        Source::Administrator => Place::Ceilings.to_string(),
    };
    (value, from)
}

fn fallback_on(rules: &Rules, said: &Resolved<'_>) -> (String, String) {
    let Some(Rule { value, source }) = &rules.fallback_on else {
        return (listed(&by_default()), DEFAULT.to_owned());
    };
    let from = match source {
        Source::Pod => annotation(keys::FALLBACK_ON),
        Source::Command => COMMAND.to_owned(),
        Source::Administrator => place(said, DEFAULT),
    };
    (listed(value), from)
}

fn listed(classes: &BTreeSet<FailureClass>) -> String {
    let classes: Vec<&str> = classes.iter().map(|class| class.as_str()).collect();
    classes.join(", ")
}

fn by_default() -> BTreeSet<FailureClass> {
    let all = FailureClass::ALL.into_iter();
    all.filter(|class| class.falls_back_by_default()).collect()
}

fn annotation(key: &str) -> String {
    format!("the pod's {key}")
}

fn place(said: &Resolved<'_>, flag: &str) -> String {
    said.from
        .map_or_else(|| flag.to_owned(), |place| place.to_string())
}
