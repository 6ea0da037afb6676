use std::path::Path;
use std::sync::Arc;

use futures::{StreamExt as _, stream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, yield_now};
use tokio_util::sync::CancellationToken;
use trylatest_containerd::fake::{Answer, FakeContainerd};
use trylatest_core::config::Config;
use trylatest_core::disk::Amount;
use trylatest_core::image::ImageName;
use trylatest_core::keys;
use trylatest_core::outcome::{Failure, FailureClass, Outcome};
use trylatest_core::plan::Planner;
use trylatest_core::pod::{GatedPod, PodId, TryContainer};
use trylatest_core::record::TryResult;
use trylatest_core::release::Release;
use trylatest_core::rules::NodeRules;
use trylatest_core::settings::Settings;
use trylatest_k8s::{PodChange, Writer, fake};

use super::super::api::Api;
use super::super::health::Health;
use super::super::history::History;
use super::super::http::{SOCKET, serve_socket};
use super::super::metrics::{Channel, Metrics};
use super::super::pods::Pods;
use super::super::{INDEX, offers, questions};
use super::*;
use crate::args::Verifies;
use crate::clock::{self, Clock};
use crate::remember::remember;

const HOUR: Duration = Duration::from_hours(1);

fn image() -> ImageName {
    "reg.example/app:latest".parse().unwrap()
}

/// A node whose name points to `one`, and a pull that says so.
fn pulled() -> (FakeContainerd, Try) {
    let node = FakeContainerd::new();
    node.hold(&image(), "sha256:one", 7);
    let duration = Duration::from_secs(3);
    let tried = Try {
        image: image(),
        started: clock::wall() - duration,
        duration,
        result: TryResult::Fresh,
        digest: "sha256:one".parse().ok(),
        size_bytes: Some(1),
        copy_unknown: true,
        pulled_for: None,
        refused: false,
        by_hand: false,
    };
    (node, tried)
}

#[tokio::test]
async fn what_the_node_shows_is_believed() {
    let (node, tried) = pulled();
    let heard = check(&node, tried.clone(), clock::wall()).await.unwrap();
    let Event::TriedByHand {
        tried: heard,
        digests,
    } = heard
    else {
        panic!("{heard:?}");
    };
    let known = Try {
        size_bytes: Some(7),
        copy_unknown: false,
        by_hand: true,
        ..tried
    };
    assert_eq!(*heard, known);
    assert!(digests.contains(&"sha256:one".parse().unwrap()));
}

#[tokio::test]
async fn nothing_else_is() {
    let (node, tried) = pulled();
    let but = |change: fn(&mut Try)| {
        let mut tried = tried.clone();
        change(&mut tried);
        tried
    };
    for (bad, words) in [
        (
            but(|tried| {
                let failure = Failure::new(FailureClass::Network, "why");
                tried.result = TryResult::Failed(failure);
            }),
            "only a pull that succeeded",
        ),
        (but(|tried| tried.digest = None), "that succeeded"),
        (
            but(|tried| tried.pulled_for = Some(Box::default())),
            "only a pull that succeeded",
        ),
        (
            but(|tried| tried.refused = true),
            "only a pull that succeeded",
        ),
        (but(|tried| tried.duration = HOUR), "in the future"),
        (but(|tried| tried.duration = Duration::MAX), "in the future"),
        (
            but(|tried| tried.digest = "sha256:two".parse().ok()),
            "but to sha256:one",
        ),
        (
            but(|tried| tried.image = "reg.example/other".parse().unwrap()),
            "but to nothing",
        ),
    ] {
        let error = check(&node, bad, clock::wall()).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    node.spoil(&image(), "its layers are gone");
    let error = check(&node, tried.clone(), clock::wall()).await;
    assert!(matches!(error, Err(NotBelieved::Moved { .. })), "{error:?}");
    node.set_down(true);
    let error = check(&node, tried, clock::wall()).await;
    let is_unknown = matches!(error, Err(NotBelieved::Unknown { .. }));
    assert!(is_unknown, "{error:?}");
}

/// The agent's main task and its socket.
struct Agent {
    history: History,
    changes: mpsc::UnboundedSender<PodChange>,
    releases: mpsc::UnboundedReceiver<Release>,
    /// They end with it.
    _tasks: JoinSet<anyhow::Result<()>>,
}

impl Agent {
    async fn start(node: &FakeContainerd, state_dir: &Path) -> Self {
        let metrics = Arc::new(Metrics::new("test").unwrap());
        let index = state_dir.join(INDEX);
        let (history, _) = History::open(&index, Arc::clone(&metrics)).await;
        let (wrote, releases) = mpsc::unbounded_channel();
        let client = fake::client(move |method, path, body| {
            let written = body["metadata"]["annotations"][keys::RELEASED].as_str();
            if let Some(release) = written.and_then(|json| serde_json::from_str(json).ok()) {
                let _ = wrote.send(release);
            }
            fake::accepted(method, path)
        });
        let (changes, watched) = mpsc::unbounded_channel();
        let (questions, asked) = questions::channel();
        let pods = Pods {
            runtime: Arc::new(node.clone()),
            api: Api {
                writer: Writer::new(client, "node", Duration::from_secs(5)),
                metrics: Arc::clone(&metrics),
            },
            history: history.clone(),
            health: Arc::new(Health::new()),
            planner: Planner::new("node", rules(), &[]),
            clock: Clock::start(),
            disk_floor: Amount::Percent(0),
            keep_for: HOUR,
            config: watch::channel(Config::default()).1,
            rolled_back: watch::channel(None).1,
            kubelet_verifies: Verifies::Yes,
            report: watch::channel(None).0,
            used: watch::channel(None).0,
            gates: offers::channel(1, metrics.calls.overflows(Channel::Gates)).0,
            questions: asked,
            metrics,
        };
        let watched = stream::unfold(watched, async |mut watched| {
            Some((Ok(watched.recv().await?), watched))
        });
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(pods.run(watched.chain(stream::pending()), stop.clone()));
        let socket = serve_socket(state_dir.to_owned(), history.clone(), questions, stop);
        tasks.spawn(socket);
        while !state_dir.join(SOCKET).exists() {
            yield_now().await;
        }
        Self {
            history,
            changes,
            releases,
            _tasks: tasks,
        }
    }
}

fn rules() -> NodeRules {
    NodeRules {
        kubelet_verifies: true,
        ..NodeRules::default()
    }
}

/// A pod that wants its copy confirmed within the last hour.
fn strict() -> GatedPod {
    let id = PodId {
        namespace: "team-a".to_owned(),
        name: "strict".to_owned(),
        uid: "1".to_owned(),
    };
    GatedPod {
        containers: vec![TryContainer {
            name: "app".to_owned(),
            written: image().to_string(),
            image: Ok(image()),
        }],
        settings: Settings {
            max_age: Some(HOUR),
            ..Settings::default()
        },
        ..GatedPod::new(id, clock::wall())
    }
}

/// The clocks are real: so is the socket.
#[tokio::test]
async fn the_agent_knows_in_the_next_outage_what_was_pulled_by_hand() {
    let (node, tried) = pulled();
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(&node, dir.path()).await;
    // One that is not true changes nothing, and does not fail the command.
    let digest = "sha256:two".parse().ok();
    let untrue = Try {
        digest,
        ..tried.clone()
    };
    remember(dir.path(), untrue).await;
    assert_eq!(agent.history.all().await.unwrap(), []);
    let started = tried.started;
    remember(dir.path(), tried).await;
    let [record] = agent.history.all().await.unwrap().try_into().unwrap();
    assert_eq!(record.copy_confirmed(), Some(started));
    assert!(record.tries[0].by_hand);
    node.answer(&image(), Answer::fail(FailureClass::Network));
    let pods = vec![strict()];
    agent.changes.send(PodChange::Reset(pods)).unwrap();
    let release = agent.releases.recv().await.unwrap();
    let app = &release.containers["app"];
    assert_eq!(app.outcome, Outcome::Fallback, "{app:?}");
    assert_eq!(app.confirmed, Some(started));
}
