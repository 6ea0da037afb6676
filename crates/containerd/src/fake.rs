//! A runtime in memory, for the unit tests of whoever is written against
//! [`crate::ImageRuntime`].
//!
//! It has a registry of its own: [`FakeContainerd::push`] says where tags point,
//! [`FakeContainerd::answer`] and [`FakeContainerd::answer_once`] how pulls go. Time is Tokio's, so
//! that tests can pause it.

mod runtime;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast, watch};
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::record::RolledBack;

use crate::containerd::locked;
use crate::program::Program;
use crate::runtime::{ImageChange, ImageEvent, PodEvent};

/// How many events a slow follower may fall behind.
const EVENTS: usize = 256;

/// How a pull goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Gets what the tag points to, at once.
    Succeed,
    /// Fails at once.
    Fail(Failure),
    /// Never ends.
    Hang,
    /// Receives so many bytes, then goes on.
    Receive(u64, Box<Self>),
    /// Nothing happens for so long, then goes on.
    Wait(Duration, Box<Self>),
}

impl Answer {
    /// `steps` downloads of `bytes` each, one `every` so often, then success.
    pub fn download(steps: u32, bytes: u64, every: Duration) -> Self {
        (0..steps).fold(Self::Succeed, |then, _| {
            Self::Wait(every, Box::new(Self::Receive(bytes, Box::new(then))))
        })
    }

    /// Fails at once with this class.
    pub fn fail(class: FailureClass) -> Self {
        Self::Fail(Failure::new(class, format!("scripted: {class}")))
    }
}

/// The runtime. Clones share their state.
#[derive(Clone, Debug)]
pub struct FakeContainerd {
    state: Arc<Mutex<State>>,
    /// Downloads that are served at once.
    served: Arc<Semaphore>,
}

#[derive(Debug)]
struct State {
    /// What the registry has.
    tags: HashMap<ImageName, Content>,
    answers: HashMap<ImageName, Answer>,
    once: HashMap<ImageName, VecDeque<Answer>>,
    /// What the node has, by name or alias.
    names: HashMap<String, Content>,
    pulls: HashMap<ImageName, Pulls>,
    /// How many images were made here.
    made: u32,
    down: bool,
    /// How long a look at a pull takes.
    look: Duration,
    /// Names that cannot be written, and how often that was tried.
    refused: HashMap<String, usize>,
    version: &'static str,
    events: broadcast::Sender<ImageEvent>,
    /// The last one.
    pod_event: watch::Sender<PodEvent>,
}

#[derive(Clone, Debug)]
struct Content {
    digest: String,
    size_bytes: u64,
    spoiled: Option<String>,
    lost: Option<Lost>,
    labels: HashMap<String, String>,
    /// The layer of an image of one program.
    program: Option<String>,
    /// What the alias of a kept copy says.
    kept: Option<KeptCopy>,
    /// What the alias of a name that was pointed back says.
    rolled_back: Option<RolledBack>,
}

/// What the disk loses of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A layer that is unpacked: no container starts from the copy, and no pull notices.
    Unpacked,
    /// The same, and something still uses it.
    UnpackedInUse,
    /// A layer that other images of the repository share: the copy is usable, and pulls of anything
    /// else fail.
    SharedLayer,
    /// What is in a file of an unpacked layer: the copy looks usable, and containers do not find what they need.
    File,
    /// The same, and a container has something on top of the layer.
    FileInUse,
    /// The same, and the layers that it was unpacked from are not here any more.
    FileAndLayers,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pulls {
    started: usize,
    running: usize,
    bytes: u64,
    queued: bool,
    mark: u64,
}

impl Default for FakeContainerd {
    fn default() -> Self {
        Self::new()
    }
}

fn no_pods() -> watch::Sender<PodEvent> {
    watch::Sender::new(PodEvent::Running(BTreeSet::new()))
}

impl FakeContainerd {
    /// A node without images and a registry without tags.
    pub fn new() -> Self {
        Self::serving(Semaphore::MAX_PERMITS)
    }

    /// The same, which serves so many downloads at once; others wait in its queue.
    pub fn serving(downloads: usize) -> Self {
        let state = State {
            tags: HashMap::new(),
            answers: HashMap::new(),
            once: HashMap::new(),
            names: HashMap::new(),
            pulls: HashMap::new(),
            made: 0,
            down: false,
            look: Duration::ZERO,
            refused: HashMap::new(),
            version: "v2.4.2",
            events: broadcast::Sender::new(EVENTS),
            pod_event: no_pods(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            served: Arc::new(Semaphore::new(downloads)),
        }
    }

    /// This happens to pods, whatever the container's name. Who follows sees the last such event.
    pub fn tell(&self, event: PodEvent) {
        locked(&self.state).pod_event.send_replace(event);
    }

    /// The registry's tag points to this from now on.
    pub fn push(&self, image: &ImageName, digest: &str, size_bytes: u64) {
        let content = content(digest, size_bytes);
        locked(&self.state).tags.insert(image.clone(), content);
    }

    /// How pulls of this image go from now on; [`Answer::Succeed`] unless said otherwise.
    pub fn answer(&self, image: &ImageName, answer: Answer) {
        locked(&self.state).answers.insert(image.clone(), answer);
    }

    /// How the next pull of this image goes. Several are taken one after the other.
    pub fn answer_once(&self, image: &ImageName, answer: Answer) {
        let mut state = locked(&self.state);
        state
            .once
            .entry(image.clone())
            .or_default()
            .push_back(answer);
    }

    /// Forgets how pulls of this image go, and how they went: nobody asks again.
    pub fn forget_pulls(&self, image: &ImageName) {
        let mut state = locked(&self.state);
        state.answers.remove(image);
        state.once.remove(image);
        state.pulls.remove(image);
    }

    /// Puts a copy on the node, as if it had been pulled earlier.
    pub fn hold(&self, image: &ImageName, digest: &str, size_bytes: u64) {
        let content = content(digest, size_bytes);
        locked(&self.state).set(image.as_str(), content);
    }

    /// Makes the node's copy one that no container could start from.
    pub fn spoil(&self, image: &ImageName, why: &str) {
        if let Some(copy) = locked(&self.state).names.get_mut(image.as_str()) {
            copy.spoiled = Some(why.to_owned());
        }
    }

    /// Takes something of the node's copy away, behind containerd's back.
    pub fn lose(&self, image: &ImageName, lost: Option<Lost>) {
        if let Some(copy) = locked(&self.state).names.get_mut(image.as_str()) {
            copy.lost = lost;
        }
    }

    /// What the node's copy has lost.
    pub fn lost(&self, image: &ImageName) -> Option<Lost> {
        let state = locked(&self.state);
        state.names.get(image.as_str())?.lost
    }

    /// Sets a label on a name.
    pub fn label(&self, name: &str, key: &str, value: &str) {
        if let Some(copy) = locked(&self.state).names.get_mut(name) {
            copy.labels.insert(key.to_owned(), value.to_owned());
        }
    }

    /// Takes a label from a name.
    pub fn unlabel(&self, name: &str, key: &str) {
        if let Some(copy) = locked(&self.state).names.get_mut(name) {
            copy.labels.remove(key);
        }
    }

    /// The labels of a name.
    pub fn labels(&self, name: &str) -> HashMap<String, String> {
        let state = locked(&self.state);
        let copy = state.names.get(name);
        copy.map(|copy| copy.labels.clone()).unwrap_or_default()
    }

    /// The same for all names of the node's copy, aliases too: its content is gone.
    pub fn hollow(&self, image: &ImageName) {
        let mut state = locked(&self.state);
        let Some(digest) = state
            .names
            .get(image.as_str())
            .map(|copy| copy.digest.clone())
        else {
            return;
        };
        let same = state
            .names
            .values_mut()
            .filter(|copy| copy.digest == digest);
        same.for_each(|copy| copy.spoiled = Some("its content is gone".to_owned()));
    }

    /// Makes what the registry's tag points to such content, too.
    pub fn spoil_tag(&self, image: &ImageName, why: &str) {
        if let Some(tag) = locked(&self.state).tags.get_mut(image) {
            tag.spoiled = Some(why.to_owned());
        }
    }

    /// Removes a name or an alias from the node.
    pub fn remove(&self, name: &str) {
        let mut state = locked(&self.state);
        if state.names.remove(name).is_some() {
            state.tell(name, ImageChange::Deleted);
        }
    }

    /// Removes a name and all others of its image, aliases too.
    pub fn remove_by_id(&self, image: &ImageName) {
        let Some(digest) = self.kept(image.as_str()) else {
            return;
        };
        let names = locked(&self.state).names.clone();
        let same = names.iter().filter(|(_, copy)| copy.digest == digest);
        same.for_each(|(name, _)| self.remove(name));
    }

    /// Refuses to keep a copy by this alias from now on, whatever is kept.
    pub fn refuse(&self, alias: &str) {
        locked(&self.state).refused.insert(alias.to_owned(), 0);
    }

    /// How often it has refused to.
    pub fn refusals(&self, alias: &str) -> usize {
        let state = locked(&self.state);
        state.refused.get(alias).copied().unwrap_or_default()
    }

    /// Where an alias points, as a digest.
    pub fn kept(&self, alias: &str) -> Option<String> {
        let state = locked(&self.state);
        state.names.get(alias).map(|copy| copy.digest.clone())
    }

    /// Says that it is this version of containerd.
    pub fn set_version(&self, version: &'static str) {
        locked(&self.state).version = version;
    }

    /// Makes each look at a pull take so long, as on a busy node.
    pub fn look_takes(&self, time: Duration) {
        locked(&self.state).look = time;
    }

    /// Makes every call fail, or work again. Going down ends all streams of events.
    pub fn set_down(&self, down: bool) {
        let mut state = locked(&self.state);
        state.down = down;
        if down {
            state.events = broadcast::Sender::new(EVENTS);
            state.pod_event = no_pods();
        }
    }

    /// How many pulls of this image have begun.
    pub fn pulls(&self, image: &ImageName) -> usize {
        locked(&self.state)
            .pulls
            .get(image)
            .map_or(0, |pulls| pulls.started)
    }

    /// How many pulls of this image run.
    pub fn running(&self, image: &ImageName) -> usize {
        locked(&self.state)
            .pulls
            .get(image)
            .map_or(0, |pulls| pulls.running)
    }
}

fn content(digest: &str, size_bytes: u64) -> Content {
    Content {
        digest: digest.to_owned(),
        size_bytes,
        spoiled: None,
        lost: None,
        labels: HashMap::new(),
        program: None,
        kept: None,
        rolled_back: None,
    }
}

impl Content {
    fn is_of(&self, program: &Program) -> bool {
        self.program.as_deref() == Some(program.layer())
    }
}

impl State {
    /// Makes the name point to the content.
    fn set(&mut self, name: &str, content: Content) {
        let change = match self.names.insert(name.to_owned(), content) {
            None => ImageChange::Created,
            Some(_) => ImageChange::Updated,
        };
        self.tell(name, change);
    }

    fn tell(&self, name: &str, change: ImageChange) {
        let name = name.to_owned();
        // Nobody may be following.
        let _ = self.events.send(ImageEvent { name, change });
    }
}
