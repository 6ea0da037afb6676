use jiff::SignedDuration;
use proptest::collection::{hash_map, vec};
use proptest::prelude::*;

use super::*;
use crate::time::Now;

const GIB: u64 = 1 << 30;

const LIMITS: Limits = Limits {
    time: Duration::from_hours(14 * 24),
    size: Amount::Percent(10),
    free: Amount::Percent(20),
    pins: true,
};

/// With room for 10 GiB of copies.
const ROOMY: Disk = Disk {
    total: 100 * GIB,
    free: 60 * GIB,
    lacks_inodes: false,
};

fn at(minutes: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_mins(1_000_000 + minutes)
}

fn digest(name: &str) -> Digest {
    format!("sha256:{name}").parse().unwrap()
}

/// A pod uses the copy that the name points to, and has run since then.
fn used(image: &str, copy: &str, since: Option<Timestamp>) -> UsedImage {
    UsedImage {
        image: image.parse().unwrap(),
        current: Some(LocalCopy {
            digest: digest(copy),
            size_bytes: Some(GIB),
        }),
        public: true,
        runs: [(digest(copy), since)].into(),
    }
}

/// What is kept, and how that changes.
#[derive(Default)]
struct Node {
    config: Config,
    kept: Vec<KeptCopy>,
    /// What names point to, where that is not what pods use.
    names: BTreeMap<ImageName, Digest>,
    is_tight: bool,
}

impl Node {
    fn step(&mut self, used: &[UsedImage], disk: Option<Disk>, now: Timestamp) -> Shelf {
        self.step_within(used, &LIMITS, disk, now)
    }

    fn step_within(
        &mut self,
        used: &[UsedImage],
        limits: &Limits,
        disk: Option<Disk>,
        now: Timestamp,
    ) -> Shelf {
        self.is_tight = limits.is_tight(disk, self.is_tight);
        let limits = Limits {
            pins: !self.is_tight,
            ..*limits
        };
        let (kept, names) = (&self.kept, &self.names);
        let decided = shelve(kept, used, names, &limits, &self.config, disk, now);
        let gone = decided.forget.iter().map(|(copy, _)| copy);
        for gone in gone.chain(&decided.write) {
            let same = |copy: &KeptCopy| copy.id() == gone.id();
            self.kept.retain(|copy| !same(copy));
        }
        self.kept.extend(decided.write.iter().cloned());
        decided
    }

    fn copies(&self) -> Vec<&str> {
        let mut copies: Vec<_> = self.kept.iter().map(|copy| copy.digest.as_str()).collect();
        copies.sort_unstable();
        copies
    }

    fn pinned(&self) -> Vec<&str> {
        let pinned = self.kept.iter().filter(|copy| copy.pinned);
        let mut pinned: Vec<_> = pinned.map(|copy| copy.digest.as_str()).collect();
        pinned.sort_unstable();
        pinned
    }
}

#[test]
fn what_a_pod_uses_is_kept_after_it_for_a_while() {
    let mut node = Node::default();
    let pod = [used("app", "a", Some(at(0)))];
    let shelf = node.step(&pod, Some(ROOMY), at(0));
    assert_eq!(shelf.write.len(), 1);
    assert!(shelf.write[0].pinned && shelf.write[0].public);
    assert!(!shelf.write[0].proven);
    assert_eq!(node.step(&pod, Some(ROOMY), at(1)), Shelf::default());
    assert!(node.step(&pod, Some(ROOMY), at(10)).write[0].proven);
    // That it is used is written twice a day.
    assert_eq!(node.step(&pod, Some(ROOMY), at(719)), Shelf::default());
    let shelf = node.step(&pod, Some(ROOMY), at(720));
    assert_eq!(shelf.write[0].used, at(720));
    assert_eq!(node.step(&[], Some(ROOMY), at(721)), Shelf::default());
    let days = |days: i64| at(720 + days * 24 * 60);
    assert_eq!(node.step(&[], Some(ROOMY), days(14)), Shelf::default());
    let shelf = node.step(&[], Some(ROOMY), days(15));
    assert_eq!(shelf.forget[0].1, Because::Age);
    assert!(node.kept.is_empty());
}

#[test]
fn the_copy_before_stays_until_the_new_one_has_run_for_a_while() {
    let mut node = Node::default();
    node.step(&[used("app", "a", Some(at(0)))], Some(ROOMY), at(20));
    let pod = [used("app", "b", Some(at(21)))];
    node.step(&pod, Some(ROOMY), at(21));
    node.step(&pod, Some(ROOMY), at(30));
    assert_eq!(node.copies(), ["sha256:a", "sha256:b"]);
    let shelf = node.step(&pod, Some(ROOMY), at(31));
    assert_eq!(shelf.forget[0].1, Because::Replaced);
    assert_eq!(node.copies(), ["sha256:b"]);
}

#[test]
fn of_copies_that_crash_only_the_last_and_the_one_before_stay() {
    let mut node = Node::default();
    for (minute, copy) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let minute = i64::try_from(minute).unwrap();
        node.step(&[used("app", copy, None)], Some(ROOMY), at(minute));
    }
    assert_eq!(node.copies(), ["sha256:c", "sha256:d"]);
}

#[test]
fn a_copy_that_has_proven_itself_outlives_others_that_have_not() {
    let mut node = Node::default();
    node.step(&[used("app", "good", Some(at(0)))], Some(ROOMY), at(20));
    for (minute, copy) in [(21, "b"), (22, "c"), (23, "d")] {
        node.step(&[used("app", copy, None)], Some(ROOMY), at(minute));
    }
    assert_eq!(node.copies(), ["sha256:d", "sha256:good"]);
    node.step(&[used("app", "d", Some(at(23)))], Some(ROOMY), at(33));
    assert_eq!(node.copies(), ["sha256:d"]);
}

#[test]
fn a_copy_that_is_too_large_takes_no_other_with_it() {
    let mut node = Node::default();
    node.step(&[used("app", "a", None)], Some(ROOMY), at(0));
    let mut large = used("large", "l", None);
    large.current.as_mut().unwrap().size_bytes = Some(11 * GIB);
    node.step(&[large], Some(ROOMY), at(1));
    let shelf = node.step(&[], Some(ROOMY), at(2));
    assert_eq!(shelf.forget[0].1, Because::Size);
    assert_eq!(node.copies(), ["sha256:a"]);
}

#[test]
fn private_copies_are_kept_and_never_pinned() {
    let mut node = Node::default();
    let mut private = used("app", "a", None);
    private.public = false;
    node.step(&[private], Some(ROOMY), at(0));
    assert_eq!(node.copies(), ["sha256:a"]);
    assert!(node.pinned().is_empty());
}

#[test]
fn a_clock_that_is_set_back_changes_no_order() {
    let mut node = Node::default();
    node.step(&[used("app", "a", None)], Some(ROOMY), at(10));
    node.step(&[used("app", "b", None)], Some(ROOMY), at(5));
    let again = node.step(&[used("app", "b", None)], Some(ROOMY), at(5));
    assert_eq!(again, Shelf::default());
    let newest = node.kept.iter().max_by_key(|copy| copy.since).unwrap();
    assert_eq!(newest.digest, digest("b"));
}

#[test]
fn a_copy_that_a_pod_still_runs_stays() {
    let mut node = Node::default();
    let mut image = used("app", "a", Some(at(0)));
    node.step(std::slice::from_ref(&image), Some(ROOMY), at(0));
    image.current = Some(LocalCopy {
        digest: digest("b"),
        size_bytes: Some(GIB),
    });
    image.runs.insert(digest("b"), Some(at(1)));
    node.step(std::slice::from_ref(&image), Some(ROOMY), at(20));
    assert_eq!(node.copies(), ["sha256:a", "sha256:b"]);
    image.runs.remove(&digest("a"));
    node.step(&[image], Some(ROOMY), at(21));
    assert_eq!(node.copies(), ["sha256:b"]);
}

#[test]
fn a_tag_that_comes_back_makes_its_copy_the_newest() {
    let mut node = Node::default();
    for (minute, copy) in [(0, "a"), (1, "b"), (2, "a"), (3, "c")] {
        node.step(&[used("app", copy, None)], Some(ROOMY), at(minute));
    }
    assert_eq!(node.copies(), ["sha256:a", "sha256:c"]);
}

#[test]
fn the_copy_that_a_name_was_pointed_back_to_is_the_newest() {
    let mut node = Node::default();
    node.step(&[used("app", "good", Some(at(0)))], Some(ROOMY), at(20));
    let pods = [used("app", "bad", Some(at(21)))];
    node.step(&pods, Some(ROOMY), at(21));
    node.names = [("app".parse().unwrap(), digest("good"))].into();
    node.step(&pods, Some(ROOMY), at(22));
    assert_eq!(node.copies(), ["sha256:bad", "sha256:good"], "one runs");
    assert_eq!(node.pinned(), ["sha256:bad", "sha256:good"]);
    let newest = node.kept.iter().max_by_key(|copy| copy.since).unwrap();
    assert_eq!(newest.digest, digest("good"), "for a name that is removed");
    // That the other has run for long makes no difference.
    assert!(!node.step(&pods, Some(ROOMY), at(60)).write.is_empty());
    assert_eq!(node.copies(), ["sha256:bad", "sha256:good"]);
    node.step(&[], Some(ROOMY), at(61));
    assert_eq!(node.copies(), ["sha256:good"]);
    assert!(node.kept[0].public, "as it was");
    assert_eq!(node.step(&[], Some(ROOMY), at(62)), Shelf::default());
}

#[test]
fn a_name_that_nobody_uses_is_pointed_back_as_well() {
    let mut node = Node::default();
    node.step(&[used("app", "good", None)], Some(ROOMY), at(0));
    node.step(&[used("app", "bad", None)], Some(ROOMY), at(1));
    node.names = [
        ("app".parse().unwrap(), digest("good")),
        ("other".parse().unwrap(), digest("unknown")),
    ]
    .into();
    node.step(&[], Some(ROOMY), at(2));
    let newest = node.kept.iter().max_by_key(|copy| copy.since).unwrap();
    assert_eq!(newest.digest, digest("good"));
    assert_eq!(node.kept.len(), 2);
}

#[test]
fn what_was_used_longest_ago_goes_first() {
    let mut node = Node::default();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    for (minute, name) in names.into_iter().enumerate() {
        let minute = i64::try_from(minute).unwrap();
        let pods = [used(name, name, None), used("runs", "z", None)];
        node.step(&pods, Some(ROOMY), at(minute));
    }
    let shelf = node.step(&[used("runs", "z", None)], Some(ROOMY), at(20));
    assert_eq!(shelf.forget[0].1, Because::Size);
    // 10 GiB, and what a pod uses.
    assert_eq!(node.kept.len(), 11);
    assert!(!node.copies().contains(&"sha256:b"));
    assert!(node.copies().contains(&"sha256:c"));
}

#[test]
fn a_full_disk_is_left_to_the_kubelet() {
    let mut node = Node::default();
    for (minute, name) in ["a", "b", "c"].into_iter().enumerate() {
        let minute = i64::try_from(minute).unwrap();
        node.step(&[used(name, name, None)], Some(ROOMY), at(minute));
    }
    let with = |tenths| Disk {
        free: tenths * GIB / 10,
        ..ROOMY
    };
    // Also what a pod uses: the kubelet spares what has containers by itself.
    let pod = [used("a", "a", None)];
    let shelf = node.step(&pod, Some(with(199)), at(5));
    assert_eq!(shelf.write.len(), 3);
    assert!(node.pinned().is_empty());
    assert_eq!(node.copies().len(), 3, "all are still known");
    node.step(&pod, Some(with(210)), at(6));
    assert!(node.pinned().is_empty(), "not back and forth");
    node.step(&pod, Some(with(251)), at(7));
    assert_eq!(node.pinned(), ["sha256:a", "sha256:b", "sha256:c"]);
}

#[test]
fn without_a_known_disk_only_what_is_used_is_kept() {
    let mut node = Node::default();
    node.step(&[used("app", "a", None)], None, at(0));
    assert_eq!(node.copies(), ["sha256:a"]);
    let bytes = Limits {
        size: Amount::Bytes(GIB),
        ..LIMITS
    };
    node.step_within(&[], &bytes, None, at(1));
    assert_eq!(node.copies(), ["sha256:a"]);
    node.step(&[], None, at(2));
    assert!(node.kept.is_empty());
}

#[test]
fn with_no_time_nothing_is_kept_at_all() {
    let mut node = Node::default();
    node.step(&[used("app", "a", None)], Some(ROOMY), at(0));
    let off = Limits {
        time: Duration::ZERO,
        ..LIMITS
    };
    node.step_within(&[used("app", "a", None)], &off, Some(ROOMY), at(0));
    assert!(node.kept.is_empty());
}

#[test]
fn the_registry_says_how_long_before_the_flag() {
    let config = |text| Config::parse(text).unwrap();
    let mut node = Node {
        config: config("registries: {long.example: {keep: 60d}, off.example: {keep: off}}"),
        ..Node::default()
    };
    let images = ["long.example/app", "off.example/app", "app"];
    let pods: Vec<UsedImage> = images
        .iter()
        .zip(["l", "o", "f"])
        .map(|(image, copy)| used(image, copy, None))
        .collect();
    node.step(&pods, Some(ROOMY), at(0));
    // What is not to be kept is not, even if a pod uses it: the pull of the next one replaces it.
    assert_eq!(node.copies(), ["sha256:f", "sha256:l"]);
    let days = |days: i64| at(days * 24 * 60);
    node.step(&[], Some(ROOMY), days(15));
    assert_eq!(node.copies(), ["sha256:l"]);
    // The administrator changes it.
    node.config = config("defaults: {keep: 10d}");
    let gone = node.step(&[], Some(ROOMY), days(16));
    assert_eq!(gone.forget[0].1, Because::Age);
    assert!(node.kept.is_empty());
}

/// What happens to a node whose clock nobody can trust: time passes, and the clock is set.
#[derive(Clone, Copy, Debug)]
struct Happens {
    up_minutes: u64,
    jump_minutes: i64,
    /// Whether the container has started anew.
    restarts: bool,
}

fn happens() -> impl Strategy<Value = Happens> {
    let jump = prop_oneof![3 => Just(0), 1 => -60_000_000..60_000_000_i64];
    (0..6_u64, jump, proptest::bool::weighted(0.2)).prop_map(
        |(up_minutes, jump_minutes, restarts)| Happens {
            up_minutes,
            jump_minutes,
            restarts,
        },
    )
}

proptest! {
    #[test]
    fn a_clock_that_jumps_proves_nothing(history in vec(happens(), 1..30)) {
        let mut node = Node::default();
        node.step(&[used("app", "old", None)], Some(ROOMY), at(-100));
        let mut running = Running::default();
        let (mut up, mut wall) = (Duration::ZERO, at(0));
        let (mut started, mut since) = (up, wall);
        let mut is_proven = false;
        running.measure(&mut [used("app", "new", Some(since))], Now { wall, up });
        for Happens { up_minutes, jump_minutes, restarts } in history {
            let passed = Duration::from_mins(up_minutes);
            up += passed;
            wall = wall + passed + SignedDuration::from_mins(jump_minutes);
            // The kubelet's times are in whole seconds; a container that starts anew has another.
            if restarts && since != wall {
                (started, since) = (up, wall);
            }
            let mut pods = [used("app", "new", Some(since))];
            running.measure(&mut pods, Now { wall, up });
            let shelf = node.step(&pods, Some(ROOMY), wall);
            is_proven |= up.saturating_sub(started) >= PROVEN_AFTER;
            let new = node.kept.iter().find(|copy| copy.digest == digest("new"));
            prop_assert_eq!(new.map(|copy| copy.proven), Some(is_proven));
            let mut gone = shelf.forget.iter().map(|(_, because)| *because);
            prop_assert!(is_proven || gone.all(|because| because != Because::Replaced));
        }
    }
}

prop_compose! {
    fn image()(
        copy in proptest::option::of(0..4_u8),
        runs in vec((0..4_u8, proptest::option::of(0..40_i64)), 0..3),
        public: bool,
    ) -> (Option<u8>, Vec<(u8, Option<i64>)>, bool) {
        (copy, runs, public)
    }
}

proptest! {
    #[test]
    fn limits_hold_and_nothing_in_use_goes(
        steps in vec((hash_map(0..4_u8, image(), 0..4), 0..30_u64, 0..40_i64), 1..20),
    ) {
        let mut node = Node::default();
        let mut minute = 0;
        for (images, free, later) in steps {
            minute += later;
            let images: Vec<UsedImage> = images
                .into_iter()
                .map(|(name, (copy, runs, public))| UsedImage {
                    image: format!("app{name}").parse().unwrap(),
                    current: copy.map(|copy| LocalCopy {
                        digest: digest(&copy.to_string()),
                        size_bytes: Some(4 * GIB),
                    }),
                    public,
                    runs: runs
                        .into_iter()
                        .map(|(copy, since)| (digest(&copy.to_string()), since.map(at)))
                        .collect(),
                })
                .collect();
            let disk = Some(Disk { free: free * GIB, ..ROOMY });
            node.step(&images, disk, at(minute));
            let is_used = |copy: &KeptCopy| images.iter().any(|image| {
                let current = image.current.as_ref().map(|current| &current.digest);
                image.image == copy.image
                    && (current == Some(&copy.digest) || image.runs.contains_key(&copy.digest))
            });
            for image in &images {
                for digest in image.current.iter().map(|copy| &copy.digest).chain(image.runs.keys()) {
                    let kept = node.kept.iter().find(|copy| copy.id() == (&image.image, digest));
                    prop_assert!(kept.is_some(), "{digest} is in use");
                }
            }
            let unused: u64 = node.kept.iter().filter(|copy| !is_used(copy)).map(|copy| copy.size_bytes).sum();
            prop_assert!(unused <= 10 * GIB);
            let pinned = node.kept.iter().filter(|copy| copy.pinned);
            for copy in pinned {
                prop_assert!(copy.public && free >= 20, "{copy:?} must not be pinned");
            }
            // Nothing more to do.
            prop_assert_eq!(node.step(&images, disk, at(minute)), Shelf::default());
        }
    }
}
