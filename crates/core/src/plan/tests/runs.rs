//! Containers that run something else than they were released with.

use super::*;
use crate::pod::Start;
use crate::release::ContainerRelease;

/// It was released with the first copy.
fn released(outcome: Outcome, world: &mut World) -> GatedPod {
    let pod = started(held("pod", world), outcome, world);
    world.handle(Event::Listed(vec![pod.clone()]));
    world.wait(Duration::from_secs(10));
    pod
}

/// It was started from this copy now.
fn starts(pod: &mut GatedPod, copy: &str, again: bool, world: &mut World) -> Vec<Action> {
    let start = Start::Started {
        digest: Some(digest(copy)),
        since: Some(world.now().wall),
        again,
    };
    pod.starts.insert("app".into(), start);
    world.see(pod)
}

/// The container runtime has what runs by these digests.
fn compared(actions: &[Action], digests: &[&str], world: &mut World) -> Vec<Action> {
    let [Action::Compare(name, runs)] = actions else {
        panic!("{actions:?}");
    };
    assert_eq!(*name, image());
    let digests = digests.iter().map(|copy| digest(copy)).collect();
    world.handle(Event::Compared(runs.clone(), Some(digests)))
}

/// What was written about it, which the pod says from then on.
fn settled(actions: &[Action], pod: &mut GatedPod, world: &mut World) -> ContainerRelease {
    let [Action::Settle(id, release)] = actions else {
        panic!("{actions:?}");
    };
    pod.released = Some(release.clone());
    let written = Event::Settled(id.clone(), release.clone(), Written::Done);
    assert_eq!(world.handle(written), []);
    assert_eq!(world.see(pod), []);
    release.containers["app"].clone()
}

/// The registry says this to a pod that comes.
fn confirmed(copy: &str, world: &mut World) {
    let other = held("other", world);
    let attempt = the_try(&world.see(&other));
    world.ends(attempt, None, usable("1"), usable(copy));
    world.handle(Event::Gone(other.id.uid));
    world.wait(Duration::from_secs(10));
}

#[test]
fn the_same_content_under_another_digest_is_no_news() {
    let mut world = World::new();
    let mut pod = released(Outcome::Fresh, &mut world);
    let asks = starts(&mut pod, "2", false, &mut world);
    assert_eq!(world.see(&pod), [], "it is asked once");
    assert_eq!(compared(&asks, &["1", "2"], &mut world), []);
    confirmed("2", &mut world);
    assert_eq!(starts(&mut pod, "2", true, &mut world), []);
}

/// A pull that was cut off has moved the name, or somebody else has: no registry has told the agent.
#[test]
fn other_content_is_told_whoever_has_brought_it() {
    let mut world = World::new();
    let mut pod = released(Outcome::Fallback, &mut world);
    assert_eq!(world.node_images()[0].pods_from_cache, 1);
    for copy in ["2", "3"] {
        let asks = starts(&mut pod, copy, true, &mut world);
        let actions = compared(&asks, &[copy], &mut world);
        let given = settled(&actions, &mut pod, &mut world);
        assert_eq!(
            (&given.outcome, &given.digest),
            (&Outcome::Fallback, &Some(digest("1")))
        );
        assert_eq!(given.runs, Some(digest(copy)));
        assert!(given.runs_unproven, "{copy}");
        let words = given.describe(world.now().wall);
        assert!(
            words.contains(&format!("was started from sha256:{copy}")),
            "{words}"
        );
        // It may be as old.
        assert_eq!(world.node_images()[0].pods_from_cache, 1);
    }
    confirmed("3", &mut world);
    assert_eq!(world.node_images()[0].pods_from_cache, 0);
    let actions = starts(&mut pod, "1", true, &mut world);
    assert_eq!(settled(&actions, &mut pod, &mut world).runs, None);
    assert_eq!(world.node_images()[0].pods_from_cache, 1);
}

/// The tag was confirmed again before the restart was seen, maybe after it.
#[test]
fn where_nobody_can_compare_the_registrys_first_word_counts() {
    for before in [true, false] {
        let mut world = World::new();
        let mut pod = released(Outcome::Fresh, &mut world);
        if before {
            confirmed("2", &mut world);
        }
        let since = world.now().wall;
        world.wait(Duration::from_secs(10));
        confirmed("2", &mut world);
        let start = Start::Started {
            digest: Some(digest("2")),
            since: Some(since),
            again: true,
        };
        pod.starts.insert("app".into(), start);
        let asks = world.see(&pod);
        let actions = compared(&asks, &[], &mut world);
        assert_eq!(!actions.is_empty(), before, "{actions:?}");
        if before {
            let given = settled(&actions, &mut pod, &mut world);
            assert_eq!(given.runs, Some(digest("2")));
        }
    }
}

/// Who has brought it may have been an earlier run of the agent.
#[test]
fn a_pull_that_ends_before_the_first_start_makes_it_fresh() {
    let mut world = World::new();
    world.learn(&[written_down(image(), Some(confirmation("2")), false)]);
    let mut pod = released(Outcome::Fallback, &mut world);
    let actions = starts(&mut pod, "2", false, &mut world);
    let given = settled(&actions, &mut pod, &mut world);
    assert_eq!(
        (given.outcome, given.digest),
        (Outcome::Fresh, Some(digest("2")))
    );
    assert_eq!(given.confirmed, Some(confirmation("2").time));
    assert_eq!(given.runs, None);
}

#[test]
fn a_pod_that_fell_back_and_starts_again_from_the_newest_has_run_the_copy_before() {
    let mut world = World::new();
    let mut pod = released(Outcome::Fallback, &mut world);
    confirmed("2", &mut world);
    let asks = starts(&mut pod, "2", true, &mut world);
    let before = pod
        .released
        .as_ref()
        .and_then(|release| release.containers.get("app").cloned());
    let actions = compared(&asks, &["2"], &mut world);
    let given = settled(&actions, &mut pod, &mut world);
    assert_eq!(
        (given.outcome, &given.runs),
        (Outcome::Fallback, &Some(digest("2")))
    );
    assert!(!given.runs_fallback() && !given.is_other());
    assert!(!given.is_news_after(before.as_ref()), "it is as usual");
}

/// The registry has said so long after the start: the container has run that all the time, whoever had brought it.
#[test]
fn what_is_confirmed_after_the_start_was_not_pulled_before_it() {
    let mut world = World::new();
    let mut pod = released(Outcome::Fallback, &mut world);
    let asks = starts(&mut pod, "2", false, &mut world);
    let actions = compared(&asks, &["2"], &mut world);
    let given = settled(&actions, &mut pod, &mut world);
    assert_eq!(given.runs, Some(digest("2")));
    world.wait(Duration::from_hours(24));
    confirmed("2", &mut world);
    assert_eq!(world.see(&pod), [], "it is said already");
}

/// A container runtime that does not answer is asked again, but not in a loop.
#[test]
fn a_comparison_that_fails_is_repeated_when_the_pod_changes() {
    let mut world = World::new();
    let mut pod = released(Outcome::Fresh, &mut world);
    let asks = starts(&mut pod, "2", true, &mut world);
    assert!(matches!(&asks[..], [Action::Compare(..)]), "{asks:?}");
    assert_eq!(world.handle(Event::Compared(digest("2"), None)), []);
    assert_eq!(world.wait(Duration::from_secs(10)), []);
    let asks = world.see(&pod);
    let actions = compared(&asks, &["2"], &mut world);
    assert_eq!(
        settled(&actions, &mut pod, &mut world).runs,
        Some(digest("2"))
    );
}

/// A node has restarted many: the container runtime is busy.
#[test]
fn pods_that_run_the_same_share_a_question() {
    let mut world = World::new();
    let one = released(Outcome::Fresh, &mut world);
    let mut other = one.clone();
    other.id.uid = "uid-other".to_owned();
    let start = Start::Started {
        digest: Some(digest("2")),
        since: Some(world.now().wall),
        again: true,
    };
    let pods = [one, other].map(|mut pod| {
        pod.starts.insert("app".into(), start.clone());
        pod
    });
    let asks = world.handle(Event::Listed(pods.to_vec()));
    let actions = compared(&asks, &["2"], &mut world);
    assert_eq!(actions.len(), 2, "{actions:?}");
}
