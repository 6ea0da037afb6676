//! The rules that apply to one container of a pod, and to the pull of one image. They are resolved once:
//! a container's when its pod's round begins, a pull's when it begins. What has begun stays as it is when the
//! configuration changes.
//!
//! | rule | whose it is | who says it, the first one that does |
//! |---|---|---|
//! | try, max age, fallback-on | a container's | the pod's annotation, its namespace in the configuration, the image's registry, the defaults of the configuration, the flag; then the ceilings |
//! | stall, freshness | a pull's, which pods share | the image's registry, the defaults of the configuration, the flag |

mod in_force;

use std::collections::BTreeSet;
use std::time::Duration;

pub use self::in_force::RuleInForce;
use crate::config::{Config, Section};
use crate::identity::Identity;
use crate::image::ImageName;
use crate::keys;
use crate::outcome::FailureClass;
use crate::pod::GatedPod;
use crate::time::written;

/// Of a pod's `activeDeadlineSeconds`, the part that may be spent on a try where a copy is here.
const DEADLINES_SHARE: u32 = 4;

/// The node's settings: the agent's flags, and its configuration before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRules {
    /// How long a pod waits before it takes the cached copy, where nothing else says so.
    pub try_for: Duration,
    /// Likewise, how long nothing may move before a pull has stalled.
    pub stall: Duration,
    /// Likewise, a registry's answer that is no older serves later pods; zero if each pod has one of its own.
    pub freshness: Duration,
    /// The kubelet remembers which credentials it has pulled an image with, and starts no other pod from
    /// it (KEP-2535).
    pub kubelet_verifies: bool,
    /// Hand out cached copies of private images without proof.
    pub allow_unverified_fallback: bool,
    /// How many images the kubelet pulls for the node's pods in a time.
    pub kubelet_pulls: PullLimit,
    /// What the administrator has configured.
    pub config: Config,
}

/// As the agent's flags are by default, while it is not known what the kubelet verifies.
impl Default for NodeRules {
    fn default() -> Self {
        Self {
            try_for: Duration::from_secs(30),
            stall: Duration::from_secs(5),
            freshness: Duration::ZERO,
            kubelet_verifies: false,
            allow_unverified_fallback: false,
            kubelet_pulls: PullLimit::default(),
            config: Config::default(),
        }
    }
}

/// The kubelet's limit of pulls: what exceeds it fails, and is tried again after a back-off
/// (`pkg/kubelet/images/helpers.go`). The default is the kubelet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullLimit {
    /// `registryPullQPS`: pulls in a second; no limit if zero.
    pub per_second: u32,
    /// `registryBurst`: pulls at once.
    pub at_once: u32,
}

impl Default for PullLimit {
    fn default() -> Self {
        Self {
            per_second: 5,
            at_once: 10,
        }
    }
}

/// Who has made a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The pod, by an annotation.
    Pod,
    /// The agent's configuration.
    Administrator,
    /// Whoever pulls by hand.
    Command,
}

/// A rule, and who has made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<T> {
    /// What it says.
    pub value: T,
    /// Who has made it.
    pub source: Source,
}

impl Source {
    fn says<T>(self, value: T) -> Rule<T> {
        let source = self;
        Rule { value, source }
    }
}

/// What applies to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How long its pod waits before it takes the cached copy.
    pub try_for: Duration,
    /// It refuses a cached copy whose tag was last confirmed longer ago.
    pub max_age: Option<Rule<Duration>>,
    /// The failure classes that allow the cached copy, instead of the default ones.
    pub fallback_on: Option<Rule<BTreeSet<FailureClass>>>,
    /// Of these, the ones that the administrator lets any pod use, if that is limited.
    pub fallback_ceiling: Option<BTreeSet<FailureClass>>,
    /// Somebody else looks after who may have a private image's copy, or nobody has to: it is given to
    /// this pod without proof.
    pub without_proof: bool,
    /// It is the kubelet that looks after that: it may not start the pod from a copy that it has pulled for others.
    pub kubelet_decides: bool,
    /// Whose credentials the kubelet has for it.
    pub identity: Identity,
}

impl Rules {
    /// The pod's settings for a container with this image, none if its name is invalid, and the node's where it has
    /// none; all within the ceilings.
    pub fn of(pod: &GatedPod, image: Option<&ImageName>, node: &NodeRules) -> Self {
        let settings = &pod.settings;
        let ceilings = &node.config.ceilings;
        let defaults = node.by_default(Some(&pod.id.namespace), image);
        let default = at_most(defaults.try_for, share_of_deadline(pod));
        let fallback_on = settings.fallback_on.clone();
        let fallback_on = fallback_on.map(|classes| Source::Pod.says(classes));
        let max_age = settings.max_age.map(|age| Source::Pod.says(age));
        Self {
            try_for: at_most(settings.timeout.unwrap_or(default), ceilings.try_for),
            max_age: capped(max_age.or(defaults.max_age), ceilings.max_age),
            fallback_on: fallback_on.or(defaults.fallback_on),
            identity: pod.identity.clone(),
            ..defaults
        }
    }

    /// Whether the pod itself has said that it may not take every copy: it asks the registry in any case.
    pub(crate) fn is_strict(&self) -> bool {
        let is_own = |source: Source| source == Source::Pod;
        self.max_age
            .as_ref()
            .is_some_and(|rule| is_own(rule.source))
            || self
                .fallback_on
                .as_ref()
                .is_some_and(|rule| is_own(rule.source))
    }

    /// Whether a cached copy may be used after a failure of this class.
    ///
    /// # Errors
    /// Who has said that it may not; none if that is so by default.
    pub fn allow_fallback_on(&self, class: FailureClass) -> Result<(), Option<Source>> {
        match &self.fallback_on {
            Some(rule) if !rule.value.contains(&class) => Err(Some(rule.source)),
            None if !class.falls_back_by_default() => Err(None),
            _ => match &self.fallback_ceiling {
                Some(ceiling) if !ceiling.contains(&class) => Err(Some(Source::Administrator)),
                _ => Ok(()),
            },
        }
    }
}

/// A pod with a short deadline needs the rest of that time for its work.
fn share_of_deadline(pod: &GatedPod) -> Option<Duration> {
    pod.active_deadline.map(|whole| whole / DEADLINES_SHARE)
}

fn at_most(value: Duration, ceiling: Option<Duration>) -> Duration {
    ceiling.map_or(value, |ceiling| value.min(ceiling))
}

/// Who says nothing gets the ceiling, too: the administrator means every copy that runs here.
fn capped(rule: Option<Rule<Duration>>, ceiling: Option<Duration>) -> Option<Rule<Duration>> {
    match (rule, ceiling) {
        (Some(rule), Some(ceiling)) if rule.value <= ceiling => Some(rule),
        (_, Some(ceiling)) => Some(Source::Administrator.says(ceiling)),
        (rule, None) => rule,
    }
}

impl NodeRules {
    /// What applies to a container with this image of a pod that sets nothing, in this namespace.
    pub fn by_default(&self, namespace: Option<&str>, image: Option<&ImageName>) -> Rules {
        let Config { ceilings, .. } = &self.config;
        let sections = self.config.sections(namespace, image);
        let sections: Vec<&Section> = sections.map(|(_, section)| section).collect();
        let first = || sections.iter().copied();
        let max_age = first().find_map(|section| section.max_age);
        let max_age = max_age.map(|age| Source::Administrator.says(age));
        let fallback_on = first().find_map(|section| section.fallback_on.clone());
        let fallback_on = fallback_on.map(|classes| Source::Administrator.says(classes));
        let try_for = first().find_map(|section| section.try_for);
        Rules {
            try_for: at_most(try_for.unwrap_or(self.try_for), ceilings.try_for),
            max_age: capped(max_age, ceilings.max_age),
            fallback_on,
            fallback_ceiling: ceilings.fallback_on.clone(),
            without_proof: self.gives_without_proof(),
            kubelet_decides: self.kubelet_verifies,
            identity: Identity::default(),
        }
    }

    /// How long nothing may move in a pull of this image before it has stalled.
    pub fn stall_of(&self, image: &ImageName) -> Duration {
        let configured = self.config.find(None, Some(image), |section| section.stall);
        configured.unwrap_or(self.stall)
    }

    /// How old a registry's answer about this image may be and still serve another pod.
    pub fn freshness_of(&self, image: &ImageName) -> Duration {
        let configured = self
            .config
            .find(None, Some(image), |section| section.freshness);
        configured.unwrap_or(self.freshness)
    }

    /// Whether a private image's copy is given to pods of which nothing proves that they may have it.
    pub fn gives_without_proof(&self) -> bool {
        self.kubelet_verifies || self.allow_unverified_fallback
    }

    /// Where a pod asks for more than the administrator allows: in words for a Warning Event.
    pub fn exceeded_by(&self, pod: &GatedPod) -> Vec<String> {
        let (settings, ceilings) = (&pod.settings, &self.config.ceilings);
        let mut words = Vec::new();
        for (key, asked, ceiling) in [
            (keys::TIMEOUT, settings.timeout, ceilings.try_for),
            (keys::MAX_AGE, settings.max_age, ceilings.max_age),
        ] {
            if let Some((asked, ceiling)) = asked.zip(ceiling)
                && asked > ceiling
            {
                let [asked, ceiling] = [asked, ceiling].map(written);
                words.push(format!(
                    "{key}: {asked} is more than the {ceiling} that the administrator allows; the administrator's \
                     ceiling applies"
                ));
            }
        }
        if let Some((asked, ceiling)) = settings
            .fallback_on
            .as_ref()
            .zip(ceilings.fallback_on.as_ref())
        {
            let beyond: Vec<&str> = asked.difference(ceiling).map(|c| c.as_str()).collect();
            if !beyond.is_empty() {
                words.push(format!(
                    "{}: the administrator does not allow the cached copy after {}; the administrator's ceiling applies",
                    keys::FALLBACK_ON,
                    beyond.join(", ")
                ));
            }
        }
        words
    }
}

#[cfg(test)]
mod tests;
