//! One fleet: what it costs while nothing happens, in an outage of its registry, and at its end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use trylatest_e2e::cluster::{Tools, wait};

use crate::Args;
use crate::apiserver::{Cost, Snapshot};
use crate::fleet::Fleet;
use crate::images::Registry;
use crate::kubelets::Kubelets;
use crate::plane::Plane;
use crate::traffic::{Asked, float};

/// How long all watches may take to begin, and all nodes to say that nothing is fallen back any more.
const SOON: Duration = Duration::from_secs(180);

/// After the last pod has started, nodes still write their reports: at most every 10 s.
const SETTLE: Duration = Duration::from_secs(30);

/// Between two looks at all nodes.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// A fleet's numbers.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) agents: usize,
    pub(crate) pods: usize,
    pub(crate) start: Phase,
    pub(crate) idle: Phase,
    pub(crate) outage: Phase,
    pub(crate) end: Phase,
    /// Nodes on which pods had fallen back.
    pub(crate) fallen_back: usize,
    /// From the registry's return until no node said so any more.
    pub(crate) healed_after_seconds: f64,
    pub(crate) index_kib_per_agent: u64,
}

/// A time of a fleet's life.
#[derive(Serialize)]
pub(crate) struct Phase {
    /// What the agents asked.
    pub(crate) asked: Asked,
    /// What the API server says of all that it had to do.
    pub(crate) cost: Cost,
    /// Of pods that were released meanwhile.
    pub(crate) outcomes: BTreeMap<String, usize>,
}

impl Phase {
    /// Writes of the agents for each pod that they released: releases, signs of life, Events and nodes' reports.
    pub(crate) fn writes_per_pod(&self) -> Option<f64> {
        let pods: usize = self.outcomes.values().sum();
        let counts = self.asked.counts;
        let writes = counts.pod + counts.event + counts.node;
        (pods > 0).then(|| float(writes) / float(pods as u64))
    }
}

/// A control plane and its fleet.
struct World<'a> {
    args: &'a Args,
    admin: Client,
    fleet: Fleet,
    kubelets: Kubelets,
    before: Snapshot,
}

/// Measures a fleet of so many agents on a control plane of its own.
pub(crate) async fn fleet(tools: &Tools, args: &Args, agents: usize) -> anyhow::Result<Measured> {
    eprintln!("{agents} agents: starting a control plane");
    let plane = Plane::start(tools).await?;
    let measured = Box::pin(on(&plane, args, agents)).await;
    plane.stop(measured.is_ok()).await?;
    measured
}

async fn on(plane: &Plane, args: &Args, agents: usize) -> anyhow::Result<Measured> {
    let admin = plane.client(None).await?;
    let namespace = plane.control().namespace("scale", &[]).await?;
    let begin = Instant::now();
    let before = Snapshot::take(&admin).await?;
    let fleet = Fleet::start(plane, agents).await?;
    let watches = || async {
        let now = Snapshot::take(&admin).await?;
        let all = now.watches() >= agents as u64;
        Ok(all.then_some(()))
    };
    wait::until("all agents watch their pods", SOON, watches).await?;
    eprintln!(
        "{agents} agents: they watch after {} s",
        begin.elapsed().as_secs()
    );
    let client = plane.client(None).await?;
    let kubelets = Kubelets::start(client, namespace.name(), args.pods);
    let mut world = World {
        args,
        admin,
        fleet,
        kubelets,
        before,
    };
    let measured = world.measure().await?;
    world.fleet.stop().await?;
    Ok(measured)
}

impl World<'_> {
    async fn measure(&mut self) -> anyhow::Result<Measured> {
        let agents = self.fleet.size();
        self.kubelets.fill(agents).await?;
        sleep(SETTLE).await;
        let start = self.phase("all pods run").await?;
        sleep(self.args.idle).await;
        let idle = self.phase("idle").await?;
        let outage = self.outage().await?;
        let fallen_back = self.fleet.fallen_back().await?;
        let (end, healed_after) = self.end().await?;
        Ok(Measured {
            agents,
            pods: agents * self.args.pods,
            start,
            idle,
            outage,
            end,
            fallen_back,
            healed_after_seconds: healed_after.as_secs_f64(),
            index_kib_per_agent: (self.fleet.index_bytes()? / agents as u64) >> 10,
        })
    }

    /// The registry is silent for all nodes, and some pods of each node are replaced.
    async fn outage(&mut self) -> anyhow::Result<Phase> {
        self.fleet.find(Registry::Unreachable)?;
        let (agents, pods) = (self.fleet.size(), self.args.replaced());
        self.kubelets.replace(agents, pods, self.args.over).await?;
        sleep(SETTLE).await;
        self.phase("outage").await
    }

    /// It is back, until no node says any more that a pod has fallen back. How long that took as well.
    async fn end(&mut self) -> anyhow::Result<(Phase, Duration)> {
        self.fleet.find(Registry::Works)?;
        let begin = Instant::now();
        let fleet = &self.fleet;
        let healed = || async {
            // A list of all nodes is not for free.
            sleep(LOOK_EVERY).await;
            Ok((fleet.fallen_back().await? == 0).then(|| begin.elapsed()))
        };
        let healed = wait::until("no node has pods that fell back", SOON, healed).await?;
        Ok((self.phase("end of the outage").await?, healed))
    }

    /// Ends a phase and begins the next.
    async fn phase(&mut self, what: &str) -> anyhow::Result<Phase> {
        let now = Snapshot::take(&self.admin).await?;
        let phase = Phase {
            asked: self.fleet.traffic.begin(),
            cost: now.since(&self.before),
            outcomes: self.kubelets.outcomes(),
        };
        self.before = now;
        self.fleet.check().context(what.to_owned())?;
        eprintln!(
            "{} agents: {what}, {:.0} s, {:.1} requests a second, at most {} in one and {} of one agent; \
             API server {:.2} CPU, {} MiB; {:?}",
            self.fleet.size(),
            phase.asked.seconds,
            phase.asked.per_second(),
            phase.asked.busiest_second,
            phase.asked.busiest_agent.counts.beyond_watch(),
            phase.cost.cpu,
            phase.cost.rss_mib,
            phase.outcomes,
        );
        Ok(phase)
    }
}
