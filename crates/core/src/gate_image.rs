//! Under which names a node has the gate's image, and what is done for a gate that could not have it.
//!
//! Pods say what their gate starts from, and tenants make pods. So a name counts only if it is the
//! agent's own image on another registry ([`ImageName::is_mirrored_by`]), only eight do, and one that
//! points to another program is left alone.

use std::collections::VecDeque;
use std::time::Duration;

use crate::image::ImageName;
use crate::pod::GateImage;

/// Names besides the agent's own. A cluster has one mirror or two.
pub const OTHERS_MAX: usize = 8;

/// If a gate still cannot get its image this long after the name was made, the kubelet's records keep
/// it from the image: the kubelet looks again after 10 s, and a failed pull shows late in the status.
pub const LOOKED_AGAIN: Duration = Duration::from_secs(15);

/// Between two images that are made because of the kubelet's records of the one before. If the kubelet
/// lets nobody use what it has not pulled (`AlwaysVerify`), no image helps.
pub const RENEW_EVERY: Duration = Duration::from_secs(60);

/// What the agent did for a gate whose image the kubelet could not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Help {
    /// The image is there; the kubelet finds it when it looks again.
    Made,
    /// The name is not one of TryLatest's.
    Foreign,
    /// The name could be TryLatest's, but another image has it on this node.
    Taken,
}

impl Help {
    /// Every kind of help.
    pub const ALL: [Self; 3] = [Self::Made, Self::Foreign, Self::Taken];

    /// The word in messages and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Foreign => "foreign",
            Self::Taken => "taken",
        }
    }

    /// What was done for this gate, whose name now points to the image or belongs to another one; none
    /// if the kubelet can have it. No image helps where the kubelet asks the registry each time; that
    /// is reported elsewhere.
    pub fn after(gate: &GateImage, made: bool) -> Option<Self> {
        let help = if made { Self::Made } else { Self::Taken };
        (gate.wanting && !gate.always_pulled).then_some(help)
    }
}

/// What is due for a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// A report that the agent does not make this image ([`Help::Foreign`]).
    Report,
    /// The image under the gate's name.
    Name {
        /// Replaces whatever has the name now; otherwise only the same program, because another one
        /// may be the next version.
        over_anything: bool,
        /// This name is given up for it.
        instead_of: Option<ImageName>,
    },
}

/// The names of the gate's image on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateNames {
    own: ImageName,
    /// The last one is the last that was seen.
    others: VecDeque<ImageName>,
}

impl GateNames {
    /// The agent's own image has this name.
    pub const fn new(own: ImageName) -> Self {
        Self {
            own,
            others: VecDeque::new(),
        }
    }

    /// The name of the agent's own image.
    pub const fn own(&self) -> &ImageName {
        &self.own
    }

    /// All names, the agent's own first.
    pub fn iter(&self) -> impl Iterator<Item = &ImageName> {
        std::iter::once(&self.own).chain(&self.others)
    }

    /// Takes over a name that an earlier agent has made, if it is one of ours and there is room. A gate
    /// may have been seen before, so it may be known already.
    pub fn take_over(&mut self, name: ImageName) {
        if name != self.own
            && !self.others.contains(&name)
            && self.own.is_mirrored_by(&name)
            && self.others.len() < OTHERS_MAX
        {
            self.others.push_back(name);
        }
    }

    /// A gate of this node is to start from this image. A new name takes the place of the one that was
    /// not seen for longest.
    pub fn gate(&mut self, gate: &GateImage) -> Due {
        let name = &gate.name;
        if *name == self.own {
            if !gate.wanting {
                return Due::Nothing;
            }
            // The kubelet refuses what is there, even if it is the next version's.
            return Due::Name {
                over_anything: !gate.always_pulled,
                instead_of: None,
            };
        }
        if !self.own.is_mirrored_by(name) {
            return if gate.wanting {
                Due::Report
            } else {
                Due::Nothing
            };
        }
        let known = self.others.iter().position(|known| known == name);
        let instead_of = match known {
            Some(at) => {
                self.others.remove(at);
                None
            }
            None if self.others.len() < OTHERS_MAX => None,
            None => self.others.pop_front(),
        };
        self.others.push_back(name.clone());
        Due::Name {
            over_anything: false,
            instead_of,
        }
    }
}

/// Whether another image is made for a pod that the kubelet keeps from the one that is there. The image
/// or one of its names was made `since_made` ago, the last image for this reason `since_renewed` ago.
pub fn renews(since_made: Duration, since_renewed: Option<Duration>) -> bool {
    since_made >= LOOKED_AGAIN && since_renewed.is_none_or(|since| since >= RENEW_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "ghcr.io/trylatest/trylatest:1";

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    fn names() -> GateNames {
        GateNames::new(name(OWN))
    }

    fn gate(name: &str, wanting: bool) -> GateImage {
        GateImage {
            name: self::name(name),
            always_pulled: false,
            wanting,
        }
    }

    fn mirror(number: usize) -> String {
        format!("m{number}.example/trylatest:1")
    }

    fn named(over_anything: bool, instead_of: Option<&str>) -> Due {
        Due::Name {
            over_anything,
            instead_of: instead_of.map(name),
        }
    }

    #[test]
    fn the_own_name_is_made_for_a_gate_that_lacks_it() {
        let mut names = names();
        assert_eq!(names.gate(&gate(OWN, false)), Due::Nothing);
        assert_eq!(names.gate(&gate(OWN, true)), named(true, None));
        let always = GateImage {
            always_pulled: true,
            ..gate(OWN, true)
        };
        // That a pull fails says nothing of what is there.
        assert_eq!(names.gate(&always), named(false, None));
        assert!(names.iter().eq([&name(OWN)]));
    }

    #[test]
    fn a_mirrors_name_is_made_for_every_gate() {
        let mut names = names();
        for wanting in [false, true] {
            let due = names.gate(&gate(&mirror(0), wanting));
            assert_eq!(due, named(false, None));
        }
        assert!(names.iter().eq([&name(OWN), &name(&mirror(0))]));
    }

    #[test]
    fn other_names_are_refused() {
        let mut names = names();
        for foreign in ["nginx", "ghcr.io/trylatest/trylatest:2"] {
            assert_eq!(names.gate(&gate(foreign, false)), Due::Nothing);
            assert_eq!(names.gate(&gate(foreign, true)), Due::Report);
        }
        assert!(names.iter().eq([&name(OWN)]));
    }

    #[test]
    fn the_name_that_was_not_seen_for_longest_makes_room() {
        let mut names = names();
        for number in 0..OTHERS_MAX {
            assert_eq!(
                names.gate(&gate(&mirror(number), false)),
                named(false, None)
            );
        }
        // Seen again: it is not the oldest.
        names.gate(&gate(&mirror(0), false));
        let due = names.gate(&gate(&mirror(OTHERS_MAX), false));
        assert_eq!(due, named(false, Some(&mirror(1))));
        assert_eq!(names.iter().count(), 1 + OTHERS_MAX);
    }

    #[test]
    fn what_an_earlier_agent_made_is_taken_over_as_far_as_there_is_room() {
        let mut names = names();
        for taken in [OWN, "nginx", &mirror(0), &mirror(0)] {
            names.take_over(name(taken));
        }
        assert!(names.iter().eq([&name(OWN), &name(&mirror(0))]));
        for number in 1..=OTHERS_MAX {
            names.take_over(name(&mirror(number)));
        }
        assert_eq!(names.iter().count(), 1 + OTHERS_MAX);
        assert!(
            !names
                .iter()
                .any(|known| *known == name(&mirror(OTHERS_MAX)))
        );
    }

    #[test]
    fn help_is_for_gates_that_lack_their_image() {
        let always = GateImage {
            always_pulled: true,
            ..gate(OWN, true)
        };
        for (gate, made, help) in [
            (gate(OWN, false), true, None),
            (gate(OWN, true), true, Some(Help::Made)),
            (gate(OWN, true), false, Some(Help::Taken)),
            (always, true, None),
        ] {
            assert_eq!(Help::after(&gate, made), help, "{gate:?}");
        }
    }

    #[test]
    fn another_image_is_made_now_and_then() {
        assert!(!renews(LOOKED_AGAIN / 2, None));
        assert!(renews(LOOKED_AGAIN, None));
        assert!(!renews(LOOKED_AGAIN, Some(RENEW_EVERY / 2)));
        assert!(renews(LOOKED_AGAIN, Some(RENEW_EVERY)));
    }
}
