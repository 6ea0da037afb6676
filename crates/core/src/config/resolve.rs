//! Which section has the say.

use std::fmt;

use super::{Config, MAX_AGE, NamespacePattern, Section};
use crate::image::{ImageName, ImagePrefix};

/// Where a section stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// What applies to pods of these namespaces.
    Namespace(&'a NamespacePattern),
    /// What applies to these images.
    Registry(&'a ImagePrefix),
    /// What applies to everything.
    Defaults,
    /// What no pod exceeds.
    Ceilings,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(pattern) => write!(f, "namespaces[{pattern}]"),
            Self::Registry(prefix) => write!(f, "registries[{prefix}]"),
            Self::Defaults => f.write_str("defaults"),
            Self::Ceilings => f.write_str("ceilings"),
        }
    }
}

/// What the file says about one rule, for one image and namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved<'a> {
    /// The rule's key.
    pub key: &'static str,
    /// What it says; none if it leaves that to the agent.
    pub value: Option<String>,
    /// What says so.
    pub from: Option<Place<'a>>,
    /// What no pod exceeds, if there is a ceiling.
    pub ceiling: Option<String>,
}

impl Config {
    /// The sections that apply, those first that have the say: the namespace's, the longest prefix of the image's
    /// repository and the shorter ones, the defaults.
    pub fn sections<'a>(
        &'a self,
        namespace: Option<&str>,
        image: Option<&'a ImageName>,
    ) -> impl Iterator<Item = (Place<'a>, &'a Section)> {
        let mut own: Vec<_> = self
            .namespaces
            .iter()
            .filter_map(|(pattern, section)| {
                let closeness = pattern.covers(namespace?)?;
                Some((closeness, Place::Namespace(pattern), section))
            })
            .collect();
        own.sort_by_key(|(closeness, ..)| std::cmp::Reverse(*closeness));
        let own = own.into_iter().map(|(_, place, section)| (place, section));
        // Names of hosts are the same in any case; a path has no uppercase letters.
        let mut rest = image.map(|image| image.repository().to_ascii_lowercase());
        let prefixes = std::iter::from_fn(move || {
            let prefix = rest.take()?;
            rest = prefix.rsplit_once('/').map(|(above, _)| above.to_owned());
            Some(prefix)
        });
        let registries = prefixes.filter_map(|prefix| self.registries.get_key_value(&*prefix));
        let registries = registries.map(|(prefix, section)| (Place::Registry(prefix), section));
        own.chain(registries)
            .chain([(Place::Defaults, &self.defaults)])
    }

    /// What the first of these sections that says it says.
    pub fn find<T>(
        &self,
        namespace: Option<&str>,
        image: Option<&ImageName>,
        rule: impl Fn(&Section) -> Option<T>,
    ) -> Option<T> {
        self.sections(namespace, image)
            .find_map(|(_, section)| rule(section))
    }

    /// What it says about each rule for this namespace and image, before the pod's own annotations.
    pub fn resolved<'a>(
        &'a self,
        namespace: Option<&str>,
        image: Option<&'a ImageName>,
    ) -> Vec<Resolved<'a>> {
        let ceilings = self.ceilings.as_section();
        let sections: Vec<_> = self.sections(namespace, image).collect();
        let rules = Section::KEYS.map(|key| {
            let ceiling = ceilings.entry(key);
            let mut own = sections.iter().copied();
            let said = own.find_map(|(place, section)| Some((section.entry(key)?, place)));
            // Of a copy's age, the ceiling is also the default.
            let default = ceiling.clone().filter(|_| key == MAX_AGE);
            let default = default.map(|value| (value, Place::Ceilings));
            let (value, from) = said.or(default).unzip();
            Resolved {
                key,
                value,
                from,
                ceiling,
            }
        });
        rules.into()
    }
}
