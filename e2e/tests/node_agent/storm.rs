//! Several things go wrong at once, or at the worst moment: afterwards every name is there, no pod waits, and no
//! other tenant has gained a copy. Every test wants the node for itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::future::{select_all, try_join_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use trylatest_e2e::registry::{Access, Fault, Scheme, User};
use trylatest_e2e::workload::{Workloads, is_running, release};

use crate::deaths::kill_agent;
use crate::gate_image::{is_named, target_of};
use crate::handover::{away, is_there_again, nothing_is_aside, runs, with_its_name_away};
use crate::private::{alice, became, becomes, outcome_of, private, with_secret};
use crate::{Node, SOON, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![],
        alone: tests![
            a_registry_that_changes_its_mind_while_agents_die,
            the_kubelet_restarts_while_a_name_is_away,
            the_kubelet_is_gone_while_a_name_is_away_and_the_registry_goes,
            containerd_dies_while_names_are_given_back,
            somebody_removes_the_alias_while_the_name_is_away,
            somebody_takes_the_name_while_it_is_away,
            another_tenants_forged_annotations_start_and_end_nothing,
            two_tenants_pull_at_once_where_the_kubelet_keeps_no_records,
        ],
    }
}

/// How many images, and how many pods of them at once, how often.
const IMAGES: usize = 10;
const AT_ONCE: usize = 3;
const WAVES: usize = 10;

/// How often something is killed at a moment that is not the same each time.
const TIMES: usize = 3;

/// How long a pod may take after the storm: the back-off of its own pulls that failed, and the same on a busy node.
const AFTER_THE_STORM: Duration = Duration::from_secs(40 + 60);

/// The order of events, the same in each run.
const SEED: u64 = 0x5DEE_CE66_D1CE_B00C;

/// A registry of several private images, and what it does to those who ask for them.
struct Storm<'a> {
    space: Space<'a>,
    order: StdRng,
    history: Vec<String>,
}

const MOODS: [Mood; 6] = [
    Mood::Well,
    Mood::KnowsNobody,
    Mood::Fails(Who::Everybody),
    Mood::IsSilent(Who::Everybody),
    Mood::Fails(Who::WithCredentials),
    Mood::IsSilent(Who::WithCredentials),
];

#[derive(Clone, Copy, Debug)]
enum Mood {
    Well,
    /// 401, with the right credentials, too.
    KnowsNobody,
    Fails(Who),
    /// Until the next mood.
    IsSilent(Who),
}

#[derive(Clone, Copy, Debug)]
enum Who {
    Everybody,
    WithCredentials,
}

impl<'a> Storm<'a> {
    /// Images that are on the node, each pulled for a pod with the secret.
    async fn new(node: &'a Node) -> anyhow::Result<Self> {
        let space = private(node, "storm", Scheme::Basic).await?;
        let storm = Self {
            space,
            order: StdRng::seed_from_u64(SEED),
            history: Vec::new(),
        };
        storm.know(&[alice()]);
        for n in 0..IMAGES {
            storm.space.push_to(&storm.repository(n), "one").await?;
        }
        let names: Vec<String> = (0..IMAGES).map(|n| format!("before-{n}")).collect();
        let all = names
            .iter()
            .enumerate()
            .map(|(n, name)| storm.create(name, n));
        try_join_all(all).await?;
        for name in &names {
            became(&storm.space, name, "fresh", "one").await?;
        }
        Ok(storm)
    }

    fn repository(&self, n: usize) -> String {
        format!("{}-{n}", self.space.repository)
    }

    fn image(&self, n: usize) -> String {
        let repository = self.repository(n);
        self.space.registry.image(&repository, "latest")
    }

    async fn create(&self, name: &str, n: usize) -> anyhow::Result<()> {
        let image = self.image(n);
        self.space.work.create(&with_secret(name, &image)).await?;
        Ok(())
    }

    fn know(&self, users: &[User]) {
        for n in 0..IMAGES {
            let access = Access::new(Scheme::Basic, users);
            self.space.registry.protect(&self.repository(n), access);
        }
    }

    async fn turn(&mut self, mood: Mood) -> anyhow::Result<()> {
        self.history.push(format!("{mood:?}"));
        let registry = &self.space.registry;
        let users = [alice()];
        let nobody = matches!(mood, Mood::KnowsNobody);
        self.know(if nobody { &[] } else { &users });
        // A delay ends with the fault: who waited is answered.
        let silence = Fault::Latency(Duration::from_secs(300));
        match mood {
            Mood::Well | Mood::KnowsNobody => registry.heal().await,
            Mood::Fails(Who::Everybody) => registry.fault(Fault::Unavailable).await,
            Mood::Fails(Who::WithCredentials) => {
                registry.fault(Fault::Unavailable.with_credentials()).await
            }
            Mood::IsSilent(Who::Everybody) => registry.fault(silence).await,
            Mood::IsSilent(Who::WithCredentials) => {
                registry.fault(silence.with_credentials()).await
            }
        }
    }

    /// Creates a wave of pods; each with its image.
    async fn wave(&mut self, wave: usize) -> anyhow::Result<Vec<(String, usize)>> {
        let pods: Vec<(String, usize)> = (0..AT_ONCE)
            .map(|n| {
                (
                    format!("wave-{wave}-{n}"),
                    self.order.random_range(0..IMAGES),
                )
            })
            .collect();
        try_join_all(pods.iter().map(|(name, n)| self.create(name, *n))).await?;
        Ok(pods)
    }

    /// Any pod of these has a release.
    async fn one_is_released(&self, pods: &[(String, usize)]) -> anyhow::Result<()> {
        let is_released = |pod: &Pod| release(pod).is_some();
        let all = pods.iter().map(|(name, _)| {
            let work = &self.space.work;
            Box::pin(work.wait_pod(name, "it is released", SOON, is_released))
        });
        select_all(all).await.0.map(drop)
    }

    /// Every pod runs, and every name is there and points to the newest that a pod has had.
    async fn is_over(&self, pods: &[(String, usize)], two: &[String]) -> anyhow::Result<()> {
        let all = pods.iter().map(|(name, _)| {
            let work = &self.space.work;
            work.wait_pod(name, "it runs", AFTER_THE_STORM, is_running)
        });
        try_join_all(all).await?;
        let mut moved = [false; IMAGES];
        for (name, n) in pods {
            let said = self.space.work.wait_log(name, "app", SOON).await?;
            ensure!(matches!(said.trim(), "one" | "two"), "{name} says {said}");
            moved[*n] |= said.trim() == "two";
        }
        for (n, two) in two.iter().enumerate() {
            let image = self.image(n);
            is_named(self.space.node, &image).await?;
            let target = target_of(self.space.node, &image).await?;
            ensure!(!moved[n] || target == *two, "{image} points to {target}");
        }
        nothing_is_aside(self.space.node).await
    }
}

async fn a_registry_that_changes_its_mind_while_agents_die(node: &Node) -> anyhow::Result<()> {
    let mut storm = Storm::new(node).await?;
    let weathered = Box::pin(weather(&mut storm)).await;
    weathered.with_context(|| format!("{:?}", storm.history))?;
    node.install.wait_ready().await?;
    storm.space.end().await
}

async fn weather(storm: &mut Storm<'_>) -> anyhow::Result<()> {
    let node = storm.space.node;
    let mut pods = Vec::new();
    let mut two = Vec::new();
    for wave in 0..WAVES {
        let mood = MOODS[(wave + storm.order.random_range(0..2)) % MOODS.len()];
        storm.turn(mood).await?;
        if wave == WAVES / 2 {
            for n in 0..IMAGES {
                two.push(storm.space.push_to(&storm.repository(n), "two").await?);
            }
        }
        let new = storm.wave(wave).await?;
        // Before a release, at one, and some time after.
        if wave == 2 {
            kill(storm, node).await?;
        }
        storm.one_is_released(&new).await?;
        if wave == 5 {
            kill(storm, node).await?;
        }
        pods.extend(new);
    }
    storm.turn(Mood::Well).await?;
    kill(storm, node).await?;
    storm.is_over(&pods, &two).await
}

async fn kill(storm: &mut Storm<'_>, node: &Node) -> anyhow::Result<()> {
    node.install.wait_ready().await?;
    storm.history.push("the agent is killed".to_owned());
    kill_agent(node).await
}

async fn the_kubelet_restarts_while_a_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "kubeletaway").await?;
    node.cluster.restart_kubelet().await?;
    space.registry.heal().await?;
    is_there_again(&space).await?;
    runs(&space, "app").await?;
    nothing_is_aside(node).await?;
    another_tenant_gains_nothing(&space).await?;
    space.end().await
}

/// In the middle of its pull, of which it keeps a record.
async fn the_kubelet_is_gone_while_a_name_is_away_and_the_registry_goes(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "kubeletgone", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    let silent = Fault::Latency(Duration::from_secs(300)).with_credentials();
    space.registry.fault(silent).await?;
    let image = space.image();
    space.work.create(&with_secret("app", &image)).await?;
    let pulls = format!("Pulling image \"{image}\"");
    space.work.wait_event("app", &pulls, SOON).await?;
    // The agent knows that it has come to it.
    let is_next = |pod: &Pod| waits_for(pod).is_some() && gate_has_opened(pod);
    let next = space
        .work
        .wait_pod("app", "its turn has come", SOON, is_next);
    next.await?;
    node.cluster.kubelet().kill().await?;
    space.registry.fault(Fault::Unavailable).await?;
    let there = is_there_again(&space).await;
    node.cluster.kubelet().revive().await?;
    there?;
    runs(&space, "app").await?;
    nothing_is_aside(node).await?;
    another_tenant_gains_nothing(&space).await?;
    space.end().await
}

/// The reason for which its container waits.
fn waits_for(pod: &Pod) -> Option<&str> {
    let container = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    container
        .state
        .as_ref()?
        .waiting
        .as_ref()?
        .reason
        .as_deref()
}

fn gate_has_opened(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let inits = status.and_then(|status| status.init_container_statuses.as_ref());
    let mut ends = inits.into_iter().flatten().filter_map(|init| {
        let ended = init.state.as_ref()?.terminated.as_ref()?;
        Some(ended.exit_code)
    });
    ends.next() == Some(0)
}

fn wants_image(pod: &Pod) -> bool {
    matches!(waits_for(pod), Some("ErrImagePull" | "ImagePullBackOff"))
}

/// The kubelet lets no pod without the secret start from the copy.
async fn another_tenant_gains_nothing(space: &Space<'_>) -> anyhow::Result<()> {
    let other = Workloads::from(space.node.cluster.namespace("othertenant").await?);
    let image = space.image();
    other.create(&tried("thief", &image)).await?;
    let fails = other.wait_pod("thief", "its pull fails", SOON, wants_image);
    fails.await?;
    other.delete().await
}

async fn containerd_dies_while_names_are_given_back(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "givingback", Scheme::Basic).await?;
    becomes(&space, "before", "fresh", "one").await?;
    // The registry asks for credentials, and then does not take them.
    space.protect(Access::new(Scheme::Basic, &[]));
    let (host, image) = (space.registry.host(), space.image());
    // A failure is remembered for its identity: each has a secret of its own.
    for time in 0..TIMES {
        let (name, secret) = (format!("app-{time}"), format!("secret-{time}"));
        space.work.pull_secret(&secret, &host, &alice()).await?;
        let spec = with_secret(&name, &image).with_secret(&secret);
        space.work.create(&spec).await?;
        let fails = space
            .work
            .wait_pod(&name, "its pull fails", SOON, wants_image);
        fails.await?;
        node.cluster.containerd().kill().await?;
        node.cluster.containerd().revive().await?;
        is_there_again(&space).await?;
        became(&space, &name, "fallback", "one").await?;
        nothing_is_aside(node).await?;
    }
    another_tenant_gains_nothing(&space).await?;
    space.end().await
}

fn alias(space: &Space<'_>) -> String {
    format!(
        "TryLatest,aside,{}",
        space.image().replace(':', "+").replace('/', ",")
    )
}

async fn remove_alias(space: &Space<'_>) -> anyhow::Result<()> {
    let alias = alias(space);
    let containerd = space.node.cluster.containerd();
    let names = containerd.ctr(&["images", "list", "-q"]).await?;
    ensure!(names.lines().any(|name| name == alias), "{alias}: {names}");
    containerd
        .ctr(&["images", "remove", "--sync", &alias])
        .await?;
    Ok(())
}

async fn somebody_removes_the_alias_while_the_name_is_away(node: &Node) -> anyhow::Result<()> {
    let space = with_its_name_away(node, "aliasgone").await?;
    remove_alias(&space).await?;
    space.registry.heal().await?;
    is_there_again(&space).await?;
    runs(&space, "app").await?;
    nothing_is_aside(node).await?;
    space.end().await
}

async fn somebody_takes_the_name_while_it_is_away(node: &Node) -> anyhow::Result<()> {
    let other = node.space("othername").await?;
    other.push("other").await?;
    other.run("before", "fresh", "other").await?;
    let theirs = target_of(node, &other.image()).await?;
    let space = with_its_name_away(node, "taken").await?;
    let image = space.image();
    let containerd = node.cluster.containerd();
    containerd
        .ctr(&["images", "tag", &other.image(), &image])
        .await?;
    space.registry.fault(Fault::Unavailable).await?;
    runs(&space, "app").await?;
    let target = target_of(node, &image).await?;
    ensure!(target == theirs, "{image} points to {target}, not {theirs}");
    nothing_is_aside(node).await?;
    // The registry's own word goes before.
    space.registry.heal().await?;
    space
        .work
        .pull_secret("fresh", &space.registry.host(), &alice())
        .await?;
    space
        .work
        .create(&with_secret("next", &image).with_secret("fresh"))
        .await?;
    runs(&space, "next").await?;
    space.says("next", "app", "one").await?;
    other.end().await?;
    space.end().await
}

/// What the agent writes, as another tenant would like it to be.
async fn forge(work: &Workloads, pod: &str, given: &Value) -> anyhow::Result<()> {
    let time = now();
    let released = json!({"time": time, "containers": {"app": given}});
    let progress = json!({"time": time, "containers": {"app": {
        "image": given["image"], "attempt": 1, "bytes": 0, "byKubelet": true,
    }}});
    let patch = json!({"metadata": {"annotations": {
        "trylatest.dev/released": released.to_string(),
        "trylatest.dev/progress": progress.to_string(),
    }}});
    let params = PatchParams::default();
    work.pods()
        .patch(pod, &params, &Patch::Merge(&patch))
        .await?;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a gate compares it with its clock"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

async fn another_tenants_forged_annotations_start_and_end_nothing(
    node: &Node,
) -> anyhow::Result<()> {
    let space = private(node, "forged", Scheme::Basic).await?;
    let image = space.image();
    let one = becomes(&space, "before", "fresh", "one").await?["digest"].clone();
    let public = node.space("forgedpublic").await?;
    public.push("public").await?;
    let other = public.run("app", "fresh", "public").await?["digest"].clone();
    let tenant = Workloads::from(node.cluster.namespace("forger").await?);
    // The second one is spared a pull of its own, so that the agent knows nothing of its end.
    for thief in ["first", "thief"] {
        tenant.create(&tried(thief, &image)).await?;
        let fails = tenant.wait_pod(thief, "its pull fails", SOON, wants_image);
        fails.await?;
    }
    let forgeries = [
        json!({"image": image, "outcome": "handed-over", "digest": one}),
        json!({"image": image, "outcome": "handed-over", "digest": other}),
        json!({"image": image, "outcome": "fallback", "digest": one}),
    ];
    for (n, forgery) in forgeries.iter().enumerate() {
        let version = format!("version-{n}");
        space.push(&version).await?;
        let name = format!("app-{n}");
        away(&space, &name).await?;
        forge(&tenant, "thief", forgery).await?;
        space.registry.heal().await?;
        let fresh = became(&space, &name, "fresh", &version).await;
        fresh.with_context(|| format!("forged {forgery}"))?;
        let thief = tenant.pods().get("thief").await?;
        ensure!(!is_running(&thief), "another tenant's pod runs");
    }
    // A gate that has not opened yet, too: its pod starts nothing that the kubelet would not let it have.
    let late = Fault::Latency(Duration::from_secs(2));
    space.registry.fault(late).await?;
    tenant.create(&tried("second", &image)).await?;
    forge(&tenant, "second", &forgeries[2]).await?;
    let fails = tenant.wait_pod("second", "its pull fails", SOON, wants_image);
    fails.await?;
    nothing_is_aside(node).await?;
    tenant.delete().await?;
    public.end().await?;
    space.end().await
}

/// A kubelet that lets any pod start from any copy, as before Kubernetes 1.35.
async fn two_tenants_pull_at_once_where_the_kubelet_keeps_no_records(
    node: &Node,
) -> anyhow::Result<()> {
    let variable = "TRYLATEST_KUBELET_VERIFIES";
    let verify = json!({"imagePullCredentialsVerificationPolicy": "NeverVerify"});
    node.cluster.kubelet().reconfigure(&verify).await?;
    node.install.set_variable(variable, Some("no")).await?;
    let result = Box::pin(two_tenants(node)).await;
    node.install.set_variable(variable, None).await?;
    let usual = json!({"imagePullCredentialsVerificationPolicy": "NeverVerifyPreloadedImages"});
    node.cluster.kubelet().reconfigure(&usual).await?;
    result
}

/// The image is not on the node.
async fn two_tenants(node: &Node) -> anyhow::Result<()> {
    let space = private(node, "owner", Scheme::Basic).await?;
    let image = space.image();
    let tenant = Workloads::from(node.cluster.namespace("absentthief").await?);
    // The owner is first: whoever comes to an absent image before is with the kubelet (docs/limits.md).
    let late = Fault::Latency(Duration::from_millis(300));
    space.registry.fault(late).await?;
    space.work.create(&with_secret("owner", &image)).await?;
    let leads = |pod: &Pod| outcome_of(pod).is_some();
    let leads = space.work.wait_pod("owner", "it leads", SOON, leads);
    leads.await?;
    tenant.create(&tried("thief", &image)).await?;
    became(&space, "owner", "fresh", "one").await?;
    let refused = |pod: &Pod| outcome_of(pod).as_deref() == Some("refused");
    let refused = tenant.wait_pod("thief", "it is refused", SOON, refused);
    ensure!(!is_running(&refused.await?), "another tenant's pod runs");
    tenant.delete().await?;
    space.end().await
}
