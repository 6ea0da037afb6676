//! Which copies are kept, so that the last good one is still here in the next outage.
//!
//! An alias keeps a copy and pins it against the kubelet's image collector, which spares what is pinned. Here is
//! decided which copies have one: those that pods use, and of those that no pod uses, the ones used last, within
//! limits.
//!
//! Two things must not come of it. While the disk is nearly full, nothing is pinned: the kubelet evicts pods when it
//! can collect no image. And private copies are never pinned: each collection makes the kubelet forget whose they are,
//! if it has to spare them (`imagesInEvictionOrder` and `runPostGCHooks`, pkg/kubelet/images/image_gc_manager.go), and
//! then any pod may use them.

mod running;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

pub use self::running::Running;
use crate::config::Config;
use crate::digest::Digest;
use crate::disk::{Amount, Disk};
use crate::image::ImageName;
use crate::record::LocalCopy;
use crate::time::age;

/// A new copy has proven itself once a container has run from it for so long: then the one before is not kept any more.
pub const PROVEN_AFTER: Duration = Duration::from_mins(10);

/// How often it is written down that a copy is used.
pub const WRITTEN_EVERY: Duration = Duration::from_hours(12);

/// Most copies that no pod uses.
const UNUSED_MAX: usize = 200;

/// A copy that an alias keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptCopy {
    /// The image, in full.
    pub image: ImageName,
    /// What its name pointed to.
    pub digest: Digest,
    /// Its size in bytes, as CRI reports it; 0 if it is not known.
    pub size_bytes: u64,
    /// Since when the image's name has pointed to it.
    pub since: Timestamp,
    /// When a pod of this node last used the copy, or could have; up to [`WRITTEN_EVERY`] later.
    pub used: Timestamp,
    /// Whether a container has run from it for [`PROVEN_AFTER`] without a break.
    pub proven: bool,
    /// Whether the registry has given it to everybody. Only then is a name that somebody has removed given back to it:
    /// of a private image, the kubelet may have forgotten whose it is.
    pub public: bool,
    /// Whether the kubelet's collector is to spare it. Only if it is public.
    pub pinned: bool,
}

impl KeptCopy {
    /// Which copy it is. What else is known of it changes, this does not.
    pub fn id(&self) -> (&ImageName, &Digest) {
        (&self.image, &self.digest)
    }
}

/// An image that pods of this node use, or wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsedImage {
    /// The image, in full.
    pub image: ImageName,
    /// What its name pointed to when it was last looked at, if there was a copy.
    pub current: Option<LocalCopy>,
    /// Whether the registry has given that copy to everybody.
    pub public: bool,
    /// The copies that containers use, and since when one of them has run without a break, by the wall clock at that
    /// time; [`Running::measure`] corrects it.
    pub runs: BTreeMap<Digest, Option<Timestamp>>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a copy is kept that no pod uses, where the configuration does not say so for its image; zero if it is
    /// not kept at all.
    pub time: Duration,
    /// How much all of those may take together. What they share counts for each.
    pub size: Amount,
    /// While less than this is free, nothing is pinned.
    pub free: Amount,
    /// Whether anything is pinned: pins have an effect, and the disk is not [tight](Self::is_tight).
    pub pins: bool,
}

impl Limits {
    /// Whether so little is free that nothing is to be pinned. If that `was` so, a quarter more has to be free until it
    /// is not: otherwise a disk that is just full enough would have all pins written again and again.
    pub fn is_tight(&self, disk: Option<Disk>, was: bool) -> bool {
        let wanted = self.free.of(disk).unwrap_or(0);
        let more = if was { wanted / 4 } else { 0 };
        disk.is_some_and(|disk| disk.free < wanted.saturating_add(more))
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shelf {
    /// Aliases to write: new ones, and those of which something has changed.
    pub write: Vec<KeptCopy>,
    /// Aliases to remove.
    pub forget: Vec<(KeptCopy, Because)>,
}

/// Why a copy is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// A newer one has proven itself, or is kept beside one that has.
    Replaced,
    /// No pod has used it for too long.
    Age,
    /// Others that were used later take all that may be kept.
    Size,
}

impl Because {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Replaced, Self::Age, Self::Size];

    /// The word in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Age => "age",
            Self::Size => "size",
        }
    }
}

/// A copy, and how it stands.
struct Item {
    copy: KeptCopy,
    before: Option<KeptCopy>,
    in_use: bool,
    is_current: bool,
    why_not: Option<Because>,
}

impl Item {
    fn is_spare(&self) -> bool {
        !self.in_use && self.why_not.is_none()
    }
}

/// Decides what is kept from now on. `kept` is what is kept now, `names` what the names of those images and of the used
/// ones point to now, `disk` the file system that holds the images, if it is known. What is used, or what a name points
/// to, is not replaced. What is used is always kept, unless it is not to be kept at all; nothing else is if the limits
/// depend on a file system that is not known.
pub fn shelve(
    kept: &[KeptCopy],
    used: &[UsedImage],
    names: &BTreeMap<ImageName, Digest>,
    limits: &Limits,
    config: &Config,
    disk: Option<Disk>,
    now: Timestamp,
) -> Shelf {
    let mut items = merged(kept, used, names, now);
    replace(&mut items);
    for item in &mut items {
        let time = config.find(None, Some(&item.copy.image), |section| section.keep);
        let time = time.unwrap_or(limits.time);
        let is_old = item.is_spare() && age(now, item.copy.used) > time;
        if is_old || time.is_zero() {
            item.why_not = Some(Because::Age);
        }
    }
    items.sort_by_key(|item| std::cmp::Reverse((item.copy.used, item.copy.since)));
    fit(&mut items, limits.size.of(disk).unwrap_or(0));
    for item in &mut items {
        item.copy.pinned = item.copy.public && limits.pins;
    }
    written(items, now)
}

/// What is kept and what is used, by image.
fn merged(
    kept: &[KeptCopy],
    used: &[UsedImage],
    names: &BTreeMap<ImageName, Digest>,
    now: Timestamp,
) -> Vec<Item> {
    let mut items: BTreeMap<(ImageName, Digest), Item> = BTreeMap::new();
    for copy in kept {
        let item = Item {
            copy: copy.clone(),
            before: Some(copy.clone()),
            in_use: false,
            is_current: false,
            why_not: None,
        };
        let (image, digest) = copy.id();
        items.insert((image.clone(), digest.clone()), item);
    }
    for image in used {
        let nothing = None;
        // Somebody may have moved the name since.
        let current = names.get(&image.image);
        let current = current.or(image.current.as_ref().map(|copy| &copy.digest));
        let current_runs = current.map(|digest| (digest, &nothing));
        for (digest, since) in current_runs.into_iter().chain(&image.runs) {
            let key = (image.image.clone(), digest.clone());
            let item = items.entry(key).or_insert_with(|| new(image, digest, now));
            item.in_use = true;
            item.copy.used = now;
            item.copy.proven |= since.is_some_and(|since| age(now, since) >= PROVEN_AFTER);
        }
        if let Some(current) = current {
            make_current(&mut items, &image.image, current, now);
        }
        if let Some(seen) = &image.current
            && let Some(item) = items.get_mut(&(image.image.clone(), seen.digest.clone()))
        {
            item.copy.public = image.public;
            item.copy.size_bytes = seen.size_bytes.unwrap_or(item.copy.size_bytes);
        }
    }
    for (image, digest) in names {
        make_current(&mut items, image, digest, now);
    }
    items.into_values().collect()
}

/// A copy that was not kept yet, which the name may have pointed to for any time.
fn new(image: &UsedImage, digest: &Digest, now: Timestamp) -> Item {
    Item {
        copy: KeptCopy {
            image: image.image.clone(),
            digest: digest.clone(),
            size_bytes: 0,
            since: Timestamp::UNIX_EPOCH,
            used: now,
            proven: false,
            public: false,
            pinned: true,
        },
        before: None,
        in_use: true,
        is_current: false,
        why_not: None,
    }
}

/// The name points to this copy, if it is kept or used.
fn make_current(
    items: &mut BTreeMap<(ImageName, Digest), Item>,
    image: &ImageName,
    current: &Digest,
    now: Timestamp,
) {
    let of_image = items
        .values()
        .filter(|item| item.copy.image == *image && item.copy.digest != *current);
    let newest = of_image.map(|item| item.copy.since).max();
    let key = (image.clone(), current.clone());
    let Some(item) = items.get_mut(&key) else {
        return;
    };
    item.is_current = true;
    // It is new, or the name has come back to it.
    let is_newest = newest.is_none_or(|newest| newest < item.copy.since);
    if item.before.is_none() || !is_newest {
        // The clock may have been set back.
        let after = newest.map_or(now, |newest| {
            let second = SignedDuration::from_secs(1);
            newest.checked_add(second).unwrap_or(newest)
        });
        item.copy.since = now.max(after);
    }
}

/// Of each image, the newest copy stays, and until that has proven itself the newest one that has, or else the one
/// before.
fn replace(items: &mut [Item]) {
    let mut by_image: BTreeMap<ImageName, Vec<&mut Item>> = BTreeMap::new();
    for item in items {
        let image = item.copy.image.clone();
        by_image.entry(image).or_default().push(item);
    }
    for copies in by_image.values_mut() {
        copies.sort_by_key(|item| std::cmp::Reverse((item.is_current, item.copy.since)));
        let mut older = copies.iter_mut();
        let is_proven = older.next().is_some_and(|newest| newest.copy.proven);
        let mut older: Vec<_> = older.collect();
        older.sort_by_key(|item| std::cmp::Reverse((item.copy.proven, item.copy.since)));
        let stays = usize::from(!is_proven);
        for item in older.into_iter().skip(stays).filter(|item| !item.in_use) {
            item.why_not = Some(Because::Replaced);
        }
    }
}

/// Of the copies that no pod uses, those used last stay, as far as they fit.
fn fit(items: &mut [Item], size_bytes: u64) {
    let (mut total, mut count) = (0_u64, 0);
    for item in items.iter_mut().filter(|item| item.is_spare()) {
        let with_it = total.saturating_add(item.copy.size_bytes);
        if with_it > size_bytes || count >= UNUSED_MAX {
            item.why_not = Some(Because::Size);
            continue;
        }
        (total, count) = (with_it, count + 1);
    }
}

fn written(items: Vec<Item>, now: Timestamp) -> Shelf {
    let mut shelf = Shelf::default();
    for Item {
        mut copy,
        before,
        why_not,
        ..
    } in items
    {
        match (before, why_not) {
            (Some(before), Some(why)) => shelf.forget.push((before, why)),
            (None, Some(_)) => {}
            (Some(before), None) => {
                if age(now, before.used) < WRITTEN_EVERY {
                    copy.used = before.used;
                }
                if copy != before {
                    shelf.write.push(copy);
                }
            }
            (None, None) => shelf.write.push(copy),
        }
    }
    // The kubelet may be about to evict pods.
    shelf.write.sort_by_key(|copy| copy.pinned);
    shelf
}

#[cfg(test)]
mod tests;
