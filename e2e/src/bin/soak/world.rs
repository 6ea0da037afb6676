//! The images and the pods, and what has happened to them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;
use trylatest_e2e::cluster::{Cluster, Namespace, Tools};
use trylatest_e2e::install::Install;
use trylatest_e2e::registry::{Access, Scheme, User};
use trylatest_e2e::testimage;
use trylatest_e2e::workload::{PodSpec, Workloads};

/// How many images everybody may have, and how many want credentials.
const PUBLIC: usize = 5;
const PRIVATE: usize = 3;

/// Pods that are there at once, at most.
const PODS: usize = 24;

const SECRET: &str = "soak";

/// How long a pod may take to run while everything works. A pod that has failed waits out the kubelet's back-off first.
pub(crate) const RUNS: Duration = Duration::from_secs(150);

pub(crate) struct World<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) install: &'a Install,
    pub(crate) tools: &'a Tools,
    pub(crate) work: Workloads,
    pub(crate) order: StdRng,
    pub(crate) images: Vec<Image>,
    /// The names of pods and the indexes of their images, oldest first.
    pub(crate) pods: VecDeque<(String, usize)>,
    pub(crate) told: BTreeMap<String, u64>,
    /// What has happened since all was well.
    pub(crate) since: Vec<String>,
    pub(crate) most_rss_bytes: u64,
    serial: u64,
}

/// An image and what its tag points to.
pub(crate) struct Image {
    pub(crate) repository: String,
    pub(crate) is_private: bool,
    pub(crate) version: u64,
}

impl<'a> World<'a> {
    /// Each image is on the node, and a pod of it runs.
    pub(crate) async fn new(
        cluster: &'a Cluster,
        install: &'a Install,
        tools: &'a Tools,
        order: StdRng,
    ) -> anyhow::Result<Self> {
        let image = |n: usize| {
            let is_private = n >= PUBLIC;
            let kind = if is_private { "private" } else { "public" };
            Image {
                repository: format!("soak/{kind}-{n}"),
                is_private,
                version: 0,
            }
        };
        let mut world = Self {
            cluster,
            install,
            tools,
            work: Workloads::from(Namespace::existing(cluster.client(), "default")),
            order,
            images: (0..PUBLIC + PRIVATE).map(image).collect(),
            pods: VecDeque::new(),
            told: BTreeMap::new(),
            since: Vec::new(),
            most_rss_bytes: 0,
            serial: 0,
        };
        let registry = cluster.registry();
        world
            .work
            .pull_secret(SECRET, &registry.host(), &alice())
            .await?;
        for n in 0..world.images.len() {
            world.push(n).await?;
        }
        world.protect();
        world.calm().await?;
        Ok(world)
    }

    /// Private images are for who has the password.
    pub(crate) fn protect(&self) {
        for image in self.images.iter().filter(|image| image.is_private) {
            let access = Access::new(Scheme::Basic, &[alice()]);
            self.cluster.registry().protect(&image.repository, access);
        }
    }

    /// Moves an image's tag.
    pub(crate) async fn push(&mut self, n: usize) -> anyhow::Result<()> {
        let image = &mut self.images[n];
        image.version += 1;
        let version = format!("{}\n", image.version);
        let content = testimage::app_of_size(self.tools, &version, 64 << 10)?;
        let registry = self.cluster.registry();
        registry.push(&content, &image.repository, "latest").await?;
        Ok(())
    }

    pub(crate) fn name_of(&self, n: usize) -> String {
        let registry = self.cluster.registry();
        registry.image(&self.images[n].repository, "latest")
    }

    /// A new pod of this image. The oldest one goes where there would be too many.
    pub(crate) async fn create(&mut self, n: usize, held: bool) -> anyhow::Result<String> {
        self.serial += 1;
        let name = format!("soak-{}", self.serial);
        let image = self.name_of(n);
        let mut spec = PodSpec::new(&name, &image, "TryLatest");
        if self.images[n].is_private {
            spec = spec.with_secret(SECRET);
        }
        if !held {
            spec = spec.annotated("trylatest.dev/hold", "none");
        }
        self.work.create(&spec).await?;
        self.pods.push_back((name.clone(), n));
        if self.pods.len() > PODS {
            self.delete(0).await?;
        }
        Ok(name)
    }

    pub(crate) async fn delete(&mut self, which: usize) -> anyhow::Result<()> {
        match self.pods.remove(which) {
            Some((name, _)) => self.work.delete_pod(&name).await,
            None => Ok(()),
        }
    }

    pub(crate) fn any_image(&mut self) -> usize {
        self.order.random_range(0..self.images.len())
    }

    pub(crate) fn count(&mut self, what: &str) {
        *self.told.entry(what.to_owned()).or_default() += 1;
    }

    /// What has been done and seen so far.
    pub(crate) fn tally(&self) -> String {
        let counts = self
            .told
            .iter()
            .map(|(what, count)| format!("{what} {count}"));
        let counts: Vec<String> = counts.collect();
        let mib = self.most_rss_bytes >> 20;
        format!("{}; agent at most {mib} MiB", counts.join(", "))
    }

    /// What has led to a failure.
    pub(crate) fn story(&self) -> String {
        format!("after: {}", self.since.join(", "))
    }
}

fn alice() -> User {
    User::new("alice", "a-password")
}
