use std::io::Write;

use trylatest_containerd::Local;
use trylatest_containerd::fake::FakeContainerd;
use trylatest_core::gate_image::{LOOKED_AGAIN, OTHERS_MAX, RENEW_EVERY};

use super::*;

const OWN: &str = "ghcr.io/trylatest/trylatest:1";

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// A file that passes for a static program.
fn program(text: &str) -> Program {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut content = vec![0; 64];
    content[..6].copy_from_slice(b"\x7fELF\x02\x01");
    content.extend(text.bytes());
    file.write_all(&content).unwrap();
    Program::open(file.path()).unwrap()
}

fn images(node: &FakeContainerd) -> GateImages<FakeContainerd> {
    GateImages::new(Arc::new(node.clone()), Some(program("one")), name(OWN))
}

fn gate(name: &str, wanting: bool) -> GateImage {
    GateImage {
        name: self::name(name),
        always_pulled: false,
        wanting,
    }
}

async fn is_there(node: &FakeContainerd, name: &str) -> bool {
    let local = node.local(&self::name(name)).await.unwrap();
    matches!(local, Local::Usable(_))
}

#[tokio::test(start_paused = true)]
async fn it_is_made_once_and_again_when_it_is_gone() {
    let node = FakeContainerd::new();
    let mut images = images(&node);
    assert_eq!(images.look().await, Ok(false), "the first time");
    assert!(is_there(&node, OWN).await);
    let made = node.kept(alias::GATE);
    assert_eq!(images.look().await, Ok(false));
    assert_eq!(node.kept(alias::GATE), made);
    node.remove(OWN);
    assert_eq!(images.look().await, Ok(true));
    node.remove_by_id(&name(OWN));
    assert_eq!(images.look().await, Ok(true));
    assert!(is_there(&node, OWN).await);
}

#[tokio::test(start_paused = true)]
async fn it_takes_the_place_of_what_the_agent_started_from_and_of_nothing_later() {
    let node = FakeContainerd::new();
    node.hold(&name(OWN), "sha256:pulled", 1);
    let mut images = images(&node);
    images.look().await.unwrap();
    let made = node.kept(alias::GATE);
    assert_eq!(node.kept(OWN), made);
    // The next version, pulled under the same name.
    node.hold(&name(OWN), "sha256:newer", 1);
    images.look().await.unwrap();
    assert_eq!(node.kept(OWN).as_deref(), Some("sha256:newer"));
    // Unless the kubelet keeps it from a gate; that a pull fails says nothing of it.
    let always = GateImage {
        always_pulled: true,
        ..gate(OWN, true)
    };
    images.gate(&always).await.unwrap();
    assert_eq!(node.kept(OWN).as_deref(), Some("sha256:newer"));
    images.gate(&gate(OWN, true)).await.unwrap();
    assert_eq!(node.kept(OWN), made);
}

#[tokio::test(start_paused = true)]
async fn a_mirrors_name_is_made_before_its_gate_starts() {
    let node = FakeContainerd::new();
    let mut images = images(&node);
    images.look().await.unwrap();
    let mirror = "mirror.example/ghcr/trylatest:1";
    assert_eq!(images.gate(&gate(mirror, false)).await, Ok(None));
    assert!(is_there(&node, mirror).await);
    node.remove(mirror);
    assert!(images.concerns(mirror));
    assert_eq!(images.look().await, Ok(true));
    assert!(is_there(&node, mirror).await);
    // An agent that comes later goes on with it.
    node.remove(mirror);
    node.hold(&name(mirror), &node.kept(alias::GATE).unwrap(), 1);
    let mut later = self::images(&node);
    later.look().await.unwrap();
    assert!(later.concerns(mirror));
    // Also if its gate is seen before the first look: it has one place of the eight.
    let mut later = self::images(&node);
    later.gate(&gate(mirror, false)).await.unwrap();
    later.look().await.unwrap();
    assert!(later.names.iter().eq([&name(OWN), &name(mirror)]));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_name_of_ours_is_left_alone() {
    let node = FakeContainerd::new();
    let mut images = images(&node);
    images.look().await.unwrap();
    for foreign in ["nginx", "ghcr.io/trylatest/trylatest:2"] {
        assert_eq!(images.gate(&gate(foreign, false)).await, Ok(None));
        let answer = images.gate(&gate(foreign, true)).await;
        assert_eq!(answer, Ok(Some(Help::Foreign)));
        assert!(!is_there(&node, foreign).await, "{foreign}");
    }
    let other = "other.example/trylatest:1";
    node.hold(&name(other), "sha256:other", 1);
    let answer = images.gate(&gate(other, true)).await;
    assert_eq!(answer, Ok(Some(Help::Taken)));
    // Nor by an agent that sees it before its first look.
    let mut later = self::images(&node);
    later.gate(&gate(other, true)).await.unwrap();
    later.look().await.unwrap();
    assert_eq!(node.kept(other).as_deref(), Some("sha256:other"));
}

#[tokio::test(start_paused = true)]
async fn names_are_bounded() {
    let node = FakeContainerd::new();
    let mut images = images(&node);
    images.look().await.unwrap();
    let mirror = |number: usize| format!("m{number}.example/trylatest:1");
    for number in 0..=OTHERS_MAX {
        images.gate(&gate(&mirror(number), false)).await.unwrap();
        // Seen again: it is not the oldest.
        images.gate(&gate(&mirror(0), false)).await.unwrap();
    }
    assert!(is_there(&node, &mirror(0)).await);
    assert!(!is_there(&node, &mirror(1)).await, "the oldest is gone");
    assert!(is_there(&node, &mirror(OTHERS_MAX)).await);
    assert!(is_there(&node, OWN).await);
}

#[tokio::test(start_paused = true)]
async fn what_the_kubelet_keeps_from_pods_is_made_anew_now_and_then() {
    let node = FakeContainerd::new();
    let mut images = images(&node);
    images.look().await.unwrap();
    let first = node.kept(OWN);
    let wanting = gate(OWN, true);
    assert_eq!(images.gate(&wanting).await, Ok(Some(Help::Made)));
    assert_eq!(node.kept(OWN), first, "the kubelet has not looked again");
    tokio::time::advance(LOOKED_AGAIN).await;
    images.gate(&wanting).await.unwrap();
    let second = node.kept(OWN);
    assert_ne!(second, first);
    tokio::time::advance(LOOKED_AGAIN).await;
    images.gate(&wanting).await.unwrap();
    assert_eq!(node.kept(OWN), second, "not so soon again");
    tokio::time::advance(RENEW_EVERY).await;
    let always = GateImage {
        always_pulled: true,
        ..wanting
    };
    let answer = images.gate(&always).await;
    assert_eq!(answer, Ok(None));
    assert_eq!(node.kept(OWN), second, "no image helps there");
}

#[tokio::test(start_paused = true)]
async fn without_a_program_the_pulled_image_is_kept() {
    let node = FakeContainerd::new();
    node.hold(&name(OWN), "sha256:pulled", 1);
    let mut images = GateImages::new(Arc::new(node.clone()), None, name(OWN));
    assert_eq!(images.look().await, Ok(false));
    node.remove(OWN);
    assert_eq!(images.look().await, Ok(true));
    assert_eq!(node.kept(OWN).as_deref(), Some("sha256:pulled"));
}
