use serde_json::{Value, json};
use trylatest_core::node::OpenRegistry;

use super::*;
use crate::nodes::tests::{agents_of, node};
use crate::output::{GOOD, ODD, styled};
use crate::pods::tests::{digest_of, gate_status, pod, release, unanswered};

const NOW: &str = "2026-01-01T12:05:00Z";

fn failed(digest: &str, class: &str) -> Value {
    let mut failed = release("fallback", digest);
    failed["class"] = json!(class);
    failed["message"] = json!("connection refused");
    failed
}

fn status(nodes: Vec<SeenNode>, pods: &[Pod]) -> Status {
    let mut fold = Fold::new(&nodes, None);
    for pod in pods {
        fold.pod(pod);
    }
    let agents = agents_of(&[("a", true), ("b", true)]);
    Status::new(NOW.parse().unwrap(), Ok(nodes), Ok(&agents), Ok(fold))
}

fn shown(status: &Status) -> String {
    anstream::adapter::strip_str(&render::text(status, false, true)).to_string()
}

/// The same pod whose gate has this status, and without a release.
fn held(name: &str, state: &Value) -> Pod {
    let mut held = serde_json::to_value(pod(name, "a", &json!(null))).unwrap();
    held["metadata"]["annotations"][keys::RELEASED].take();
    let annotations = held["metadata"]["annotations"].as_object_mut().unwrap();
    annotations.remove(keys::RELEASED);
    held["status"]["initContainerStatuses"] = json!([gate_status(state)]);
    serde_json::from_value(held).unwrap()
}

#[test]
fn what_runs_from_an_old_copy_is_counted_by_image() {
    let on = Some((true, "reg.example/app:1 (sha256:bbb): network"));
    let mut never = failed("b", "timeout");
    never["confirmed"].take();
    let status = status(
        vec![node("a", on), node("b", on)],
        &[
            pod("1", "a", &release("fresh", "c")),
            pod("2", "a", &failed("b", "network")),
            pod("3", "b", &never),
        ],
    );
    assert_eq!((status.pods, status.pods_from_cache), (Some(3), 2));
    let [stale] = &status.stale[..] else {
        panic!("{:?}", status.stale);
    };
    assert_eq!(stale.image, "reg.example/app:1");
    assert_eq!((stale.pods, stale.nodes, stale.behind), (2, 2, 0));
    assert_eq!(stale.confirmed, None);
    assert_eq!(
        stale.classes,
        [FailureClass::Network, FailureClass::Timeout]
    );
    assert_eq!(status.registries[0].registry, "reg.example");
    assert_eq!(status.registries[0].pods, 2);
    // Two digests of one tag.
    let digests: Vec<_> = status.skew[0]
        .digests
        .iter()
        .map(|used| used.pods)
        .collect();
    assert_eq!(digests, [2, 1]);
    let text = shown(&status);
    assert!(
        text.starts_with("2 nodes, 2 agents ready; 3 TryLatest pods: 2 run an old copy\n"),
        "{text}"
    );
    assert!(text.contains("never      network, timeout"), "{text}");
}

#[test]
fn open_circuits_are_counted_over_the_nodes_whose_agents_are_ready() {
    let with = |name: &str, registry: &str, class, since: &str| {
        let mut node = node(name, None);
        node.open = vec![OpenRegistry {
            registry: registry.to_owned(),
            class,
            since: since.parse().unwrap(),
        }];
        node
    };
    let nodes = vec![
        with(
            "a",
            "reg.example",
            FailureClass::Network,
            "2026-01-01T12:04Z",
        ),
        with(
            "b",
            "reg.example",
            FailureClass::Timeout,
            "2026-01-01T12:03Z",
        ),
        // It has no agent.
        with(
            "gone",
            "old.example",
            FailureClass::Network,
            "2025-01-01T12:03Z",
        ),
    ];
    let status = status(nodes, &[]);
    let [open] = &status.open_circuits[..] else {
        panic!("{:?}", status.open_circuits);
    };
    assert_eq!((open.registry.as_str(), open.nodes), ("reg.example", 2));
    let text = shown(&status);
    assert!(text.contains("reg.example  2      2m   "), "{text}");
    assert!(text.contains("timeout"), "{text}");
    assert!(!text.contains("old.example"), "{text}");
}

#[test]
fn a_copy_that_was_confirmed_since_is_no_old_one() {
    let off = Some((false, "no pod on this node runs a cached image"));
    let status = status(
        vec![node("a", off)],
        &[pod("2", "a", &failed("b", "network"))],
    );
    assert_eq!(status.pods_from_cache, 0);
    assert!(status.stale.is_empty() && status.registries.is_empty());
    assert!(shown(&status).contains("none runs an old copy"));
}

#[test]
fn a_node_that_does_not_know_of_a_pod_yet_takes_nothing_back() {
    let off = Some((false, "no pod on this node runs a cached image"));
    let mut late = node("a", off);
    late.fallback.as_mut().unwrap().written = "2026-01-01T11:59:50Z".parse().ok();
    let status = status(vec![late], &[pod("2", "a", &failed("b", "network"))]);
    assert_eq!(status.pods_from_cache, 1);
    assert!(shown(&status).contains("1 runs an old copy"));
}

/// Pods of one image may have different settings.
#[test]
fn pods_that_are_refused_the_copy_that_others_run_are_named_with_them() {
    let mut refused = failed("b", "network");
    refused["outcome"] = json!("refused");
    let on = Some((
        true,
        "reg.example/app:1 (sha256:bbb): network, 1 pod refused",
    ));
    let pods = [
        pod("1", "a", &failed("b", "network")),
        pod("2", "a", &refused),
    ];
    let status = status(vec![node("a", on)], &pods);
    let [stale] = &status.stale[..] else {
        panic!("{:?}", status.stale);
    };
    assert_eq!((stale.pods, stale.refused), (1, 1));
    let text = shown(&status);
    assert!(text.contains("network; 1 other pod refused"), "{text}");
}

#[test]
fn pods_without_a_copy_are_named_with_those_that_run_one() {
    let mut unavailable = failed("b", "unauthorized");
    unavailable["outcome"] = json!("unavailable");
    let mut waiting = serde_json::to_value(pod("2", "a", &unavailable)).unwrap();
    let pulling = json!({"waiting": {"reason": "ErrImagePull", "message": "no"}});
    waiting["status"]["containerStatuses"] = json!([{
        "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": pulling,
    }]);
    let on = Some((
        true,
        "reg.example/app:1 (sha256:bbb): network, 1 pod unavailable",
    ));
    let pods = [
        pod("1", "a", &failed("b", "network")),
        serde_json::from_value(waiting).unwrap(),
    ];
    let status = status(vec![node("a", on)], &pods);
    let [stale] = &status.stale[..] else {
        panic!("{:?}", status.stale);
    };
    assert_eq!((stale.pods, stale.unavailable), (1, 1));
    let text = shown(&status);
    assert!(text.contains("1 runs an old copy, 1 unavailable"), "{text}");
    assert!(text.contains("network; 1 other pod unavailable"), "{text}");
}

#[test]
fn pods_that_have_ended_do_not_count() {
    let mut ended = pod("1", "a", &failed("b", "network"));
    ended.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let status = status(vec![node("a", None)], &[ended]);
    assert_eq!(status.pods, Some(0));
    assert!(status.skew.is_empty());
}

#[test]
fn a_tag_that_moved_under_a_pod_without_a_gate_is_named() {
    let mut moved = release("not-held", "b");
    moved["moved"] = json!(digest_of("c"));
    let status = status(vec![node("a", None)], &[pod("1", "a", &moved)]);
    assert_eq!(status.pods_from_cache, 0);
    assert_eq!((status.stale[0].pods, status.stale[0].behind), (0, 1));
    let text = shown(&status);
    assert!(text.contains("1 without a gate: tag moved"), "{text}");
    assert!(
        text.contains("1 TryLatest pod: 1 runs behind its tag\n"),
        "{text}"
    );
}

#[test]
fn pods_behind_their_tags_are_counted_next_to_those_with_an_old_copy() {
    let mut moved = release("not-held", "b");
    moved["moved"] = json!(digest_of("c"));
    let on = Some((true, "reg.example/app:1 (sha256:bbb): network"));
    let pods = [
        pod("1", "a", &failed("b", "network")),
        pod("2", "a", &moved),
        pod("3", "a", &moved),
    ];
    let text = shown(&status(vec![node("a", on)], &pods));
    assert!(
        text.contains("3 TryLatest pods: 1 runs an old copy, 2 behind their tags\n"),
        "{text}"
    );
}

#[test]
fn long_words_are_cut_on_a_terminal_only() {
    let mut long = node("a", None);
    long.summary = Some("word ".repeat(40));
    let status = status(vec![long], &[]);
    let shown = |all, is_terminal| render::text(&status, all, is_terminal);
    assert!(shown(false, true).contains('…'));
    for (all, is_terminal) in [(true, true), (false, false)] {
        assert!(!shown(all, is_terminal).contains('…'));
    }
}

#[test]
fn pods_to_look_at_come_worst_first() {
    let waiting = held(
        "waits",
        &json!({"running": {"startedAt": "2026-01-01T12:04:00Z"}}),
    );
    let unanswered = held(
        "alone",
        &json!({"terminated": {"exitCode": 0, "message": "unanswered after 20s"}}),
    );
    let refused = held(
        "refused",
        &json!({"terminated": {"exitCode": 1, "message": "refused: app: too old\nrefused after 0.10s"}}),
    );
    let status = status(vec![node("a", None)], &[waiting, unanswered, refused]);
    let troubles: Vec<_> = status.troubled.iter().map(|pod| pod.trouble).collect();
    assert_eq!(
        troubles,
        [Trouble::Refused, Trouble::Waiting, Trouble::Unanswered]
    );
    let text = shown(&status);
    assert!(text.contains("1 waiting, 1 refused"), "{text}");
    assert!(text.contains("shop/waits    waiting     60s"), "{text}");
}

/// After a reboot of its node, for example.
#[test]
fn a_release_of_an_earlier_start_is_no_answer() {
    let released = pod("1", "a", &release("fresh", "b"));
    let end = "2026-01-01T12:04:00Z";
    let again = unanswered(&released, end, None);
    let other = pod("2", "a", &release("fresh", "c"));
    let stale = status(vec![node("a", None)], &[again, other.clone()]);
    let [troubled] = &stale.troubled[..] else {
        panic!("{:?}", stale.troubled);
    };
    let since = Some(end.parse().unwrap());
    assert_eq!(
        (troubled.trouble, troubled.since),
        (Trouble::Unanswered, since)
    );
    // Nobody knows what it runs.
    assert!(stale.skew.is_empty(), "{:?}", stale.skew);
    let amended = unanswered(&released, end, Some(end));
    let known = status(vec![node("a", None)], &[amended, other]);
    assert!(known.troubled.is_empty(), "{:?}", known.troubled);
    assert_eq!(known.skew[0].digests.len(), 2);
}

/// A pod without a gate of which no agent has said anything.
fn unreported(name: &str) -> Pod {
    let mut unheld = held(name, &json!({}));
    let labels = unheld.metadata.labels.as_mut().unwrap();
    labels.insert(keys::GATED.into(), keys::GATED_NONE.into());
    unheld.spec.as_mut().unwrap().init_containers = None;
    unheld
}

#[test]
fn pods_of_which_nobody_knows_are_no_good_news() {
    let fresh = pod("1", "a", &release("fresh", "b"));
    let end = json!({"terminated": {"exitCode": 0, "message": "unanswered after 20s"}});
    let mut overruled = unreported("3");
    let labels = overruled.metadata.labels.as_mut().unwrap();
    labels.insert(keys::GATED.into(), keys::GATED_OVERRULED.into());
    let good = styled(GOOD, "none runs an old copy");
    let odd = styled(ODD, "none is known to run an old copy");
    for (unknown, words) in [
        (held("2", &end), "1 unanswered"),
        (overruled, "1 overruled"),
        (unreported("4"), "1 not reported yet"),
    ] {
        let status = status(vec![node("a", None)], &[fresh.clone(), unknown]);
        let colours = render::text(&status, false, true);
        assert!(
            colours.contains(&odd) && !colours.contains(&good),
            "{colours:?}"
        );
        let line = format!("2 TryLatest pods: none is known to run an old copy, {words}\n");
        let text = shown(&status);
        assert!(text.contains(&line), "{text}");
    }
    // One whose only container waits for its image runs nothing.
    let mut pulls = serde_json::to_value(unreported("4")).unwrap();
    pulls["status"]["containerStatuses"] = json!([{
        "name": "app", "image": "", "imageID": "", "ready": false, "restartCount": 0,
        "state": {"waiting": {"reason": "ContainerCreating"}},
    }]);
    let pods = [fresh, serde_json::from_value(pulls).unwrap()];
    let status = status(vec![node("a", None)], &pods);
    assert!(render::text(&status, false, true).contains(&good));
}

#[test]
fn a_screen_is_bounded_and_says_what_is_left_out() {
    let nodes: Vec<_> = (0..5_000)
        .map(|n| node(&format!("n{n:04}"), None))
        .collect();
    let pods: Vec<_> = (0..1_200)
        .map(|n| held(&format!("p{n}"), &json!({"running": {}})))
        .collect();
    let status = status(nodes, &pods);
    let text = shown(&status);
    assert!(text.lines().count() < 40, "{text}");
    assert!(text.contains("and 4990 more (--all)"), "{text}");
    assert!(text.contains("and 1190 more (--all)"), "{text}");
    assert!(
        text.starts_with("5000 nodes, 0 of 5000 agents ready"),
        "{text}"
    );
}

#[test]
fn the_worst_pods_are_kept_and_all_are_counted() {
    let waits = |n: usize| held(&format!("p{n}"), &json!({"running": {}}));
    let refused = held(
        "refused",
        &json!({"terminated": {"exitCode": 1, "message": "refused: app: too old\nrefused after 0.10s"}}),
    );
    let mut pods: Vec<_> = (0..1_200).map(waits).collect();
    pods.push(refused);
    let status = status(vec![node("a", None)], &pods);
    assert_eq!(status.troubled.len(), 1_000);
    assert_eq!(status.troubled[0].trouble, Trouble::Refused);
    assert_eq!(status.left_out.troubled, 201);
    let text = shown(&status);
    assert!(text.contains("1200 waiting, 1 refused"), "{text}");
    assert!(text.contains("and 1191 more (--all)"), "{text}");
    let all = render::text(&status, true, false);
    assert!(
        all.contains("and 201 more") && !all.contains("--all"),
        "{all}"
    );
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["troubles"], json!({"refused": 1, "waiting": 1200}));
    let yaml = serde_saphyr::to_string(&status).unwrap();
    assert!(yaml.contains("  waiting: 1200"), "{yaml}");
}

#[test]
fn what_could_not_be_looked_at_is_said() {
    let forbidden = Unseen::Forbidden("list nodes: forbidden".into());
    let status = Status::new(
        NOW.parse().unwrap(),
        Err(forbidden.clone()),
        Err(&forbidden),
        Ok(Fold::new(&[], None)),
    );
    let text = shown(&status);
    assert!(
        text.starts_with("nodes not seen; 0 TryLatest pods"),
        "{text}"
    );
    assert!(
        text.contains("not looked at: list nodes: forbidden"),
        "{text}"
    );
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["notSeen"][0], "list nodes: forbidden");
    // Pods that nobody could list are not "no pod that runs an old copy".
    let pods = Unseen::Forbidden("list pods: forbidden".into());
    let agents = agents_of(&[("a", true)]);
    let nodes = Ok(vec![node("a", None)]);
    let status = Status::new(NOW.parse().unwrap(), nodes, Ok(&agents), Err(pods));
    let text = shown(&status);
    assert!(
        text.starts_with("1 node, 1 agent ready; pods not seen\n"),
        "{text}"
    );
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["pods"], Value::Null);
}

#[test]
fn whose_pods_they_are_is_said() {
    let nodes = [node("a", None)];
    let mut fold = Fold::new(&nodes, Some("shop"));
    fold.pod(&pod("1", "a", &release("fresh", "c")));
    let agents = agents_of(&[("a", true)]);
    let nodes = Ok(nodes.into());
    let status = Status::new(NOW.parse().unwrap(), nodes, Ok(&agents), Ok(fold));
    let text = shown(&status);
    assert!(
        text.starts_with(
            "1 node, 1 agent ready; 1 TryLatest pod in namespace shop: none runs an old copy\n"
        ),
        "{text}"
    );
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["namespace"], "shop");
}
