//! A runtime in memory, for the unit tests of whoever is written against [`ImageRuntime`].
//!
//! It has a registry of its own: [`FakeContainerd::push`] says where tags point,
//! [`FakeContainerd::answer`] and [`FakeContainerd::answer_once`] how pulls go. Time is Tokio's, so
//! that tests can pause it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::{Semaphore, broadcast};
use trylatest_core::image::ImageName;
use trylatest_core::outcome::{Failure, FailureClass};

use crate::alias;
use crate::containerd::locked;
use crate::program::Program;
use crate::runtime::{
    ImageChange, ImageEvent, ImageEvents, ImageRuntime, Local, LocalImage, Mended, Movement, Over,
    Pin, Pointed, PullError, RuntimeError, RuntimeVersion,
};

/// Events that a slow follower may fall behind by.
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
    events: broadcast::Sender<ImageEvent>,
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
}

/// What the disk loses of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// A layer that is unpacked: no container starts from the copy, and no pull notices.
    Unpacked,
    /// The same, and something holds on to it.
    UnpackedInUse,
    /// A layer that other images of the repository share: the copy is usable, and pulls of anything
    /// else fail.
    SharedLayer,
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
            events: broadcast::Sender::new(EVENTS),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            served: Arc::new(Semaphore::new(downloads)),
        }
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

    /// Where an alias points, as a digest.
    pub fn kept(&self, alias: &str) -> Option<String> {
        let state = locked(&self.state);
        state.names.get(alias).map(|copy| copy.digest.clone())
    }

    /// Makes every call fail, or work again. Going down ends all streams of events.
    pub fn set_down(&self, down: bool) {
        let mut state = locked(&self.state);
        state.down = down;
        if down {
            state.events = broadcast::Sender::new(EVENTS);
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

    /// The state, if containerd is up.
    fn up(
        &self,
        operation: &'static str,
    ) -> Result<std::sync::MutexGuard<'_, State>, RuntimeError> {
        let state = locked(&self.state);
        if state.down {
            return Err(RuntimeError::Unreachable {
                operation,
                why: "scripted".to_owned(),
            });
        }
        Ok(state)
    }

    fn look(&self, image: &ImageName, on_disk: bool) -> Result<Local, RuntimeError> {
        let state = self.up("asking CRI for an image")?;
        Ok(match state.names.get(image.as_str()) {
            None => Local::Absent,
            Some(Content {
                spoiled: Some(why), ..
            }) => Local::Unusable { why: why.clone() },
            Some(Content {
                lost: Some(Lost::Unpacked | Lost::UnpackedInUse),
                ..
            }) if on_disk => Local::Unusable {
                why: "an unpacked layer is gone".to_owned(),
            },
            Some(copy) => Local::Usable(LocalImage {
                image: image.clone(),
                digest: copy.digest.clone(),
                size_bytes: copy.size_bytes,
            }),
        })
    }

    /// Begins a pull; it ends when the answer is dropped.
    fn begin(&self, image: &ImageName) -> (Answer, Running) {
        let mut state = locked(&self.state);
        let scripted = state.once.get_mut(image).and_then(VecDeque::pop_front);
        let usual = state.answers.get(image).cloned();
        let answer = scripted.or(usual).unwrap_or(Answer::Succeed);
        let pulls = state.pulls.entry(image.clone()).or_default();
        *pulls = Pulls {
            started: pulls.started + 1,
            running: pulls.running + 1,
            bytes: 0,
            queued: false,
            mark: pulls.mark,
        };
        let running = Running {
            node: self.clone(),
            image: image.clone(),
        };
        (answer, running)
    }

    /// What the registry has for this name, taken over.
    fn take_over(&self, image: &ImageName) -> Result<(), Failure> {
        let mut state = locked(&self.state);
        if state.down {
            return Err(Failure::new(FailureClass::Local, "containerd is down"));
        }
        let content =
            state.tags.get(image).cloned().ok_or_else(|| {
                Failure::new(FailureClass::NotFound, format!("{image}: not found"))
            })?;
        let mut content = content;
        if let Some(copy) = state.names.get(image.as_str()) {
            if copy.digest == content.digest {
                // Nothing is fetched.
                content.lost = copy.lost;
            } else if copy.lost == Some(Lost::SharedLayer) {
                return Err(Failure::new(FailureClass::Local, "a layer's file is gone"));
            }
            content.labels.clone_from(&copy.labels);
        } else if let Some(kept) = state.names.get(&alias::of(image)) {
            content.labels.clone_from(&kept.labels);
        }
        if !image.has_digest() {
            let by_digest = format!("{}@{}", image.repository(), content.digest);
            let named = state.names.entry(by_digest);
            named.or_insert_with(|| Content {
                labels: HashMap::new(),
                ..content.clone()
            });
        }
        state.set(image.as_str(), content);
        Ok(())
    }

    fn set_queued(&self, image: &ImageName, queued: bool) {
        if let Some(pulls) = locked(&self.state).pulls.get_mut(image) {
            pulls.queued = queued;
        }
    }

    fn receive(&self, image: &ImageName, bytes: u64) {
        let mut state = locked(&self.state);
        if let Some(pulls) = state.pulls.get_mut(image) {
            pulls.bytes += bytes;
            pulls.mark += 1;
        }
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
    }
}

impl Content {
    fn is_of(&self, program: &Program) -> bool {
        self.program.as_deref() == Some(program.layer())
    }
}

/// A pull that runs.
struct Running {
    node: FakeContainerd,
    image: ImageName,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pulls) = locked(&self.node.state).pulls.get_mut(&self.image) {
            pulls.running -= 1;
        }
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

impl ImageRuntime for FakeContainerd {
    async fn pull(&self, image: &ImageName) -> Result<(), PullError> {
        let (mut answer, _running) = self.begin(image);
        let failed = |failure| PullError::new(image.clone(), failure);
        // The registry's word is not waited for in the queue.
        let _place = if matches!(answer, Answer::Receive(..) | Answer::Wait(..)) {
            self.set_queued(image, true);
            let place = self.served.acquire().await;
            self.set_queued(image, false);
            place.ok()
        } else {
            None
        };
        loop {
            answer = match answer {
                Answer::Succeed => return self.take_over(image).map_err(failed),
                Answer::Fail(failure) => return Err(failed(failure)),
                Answer::Hang => std::future::pending().await,
                Answer::Receive(bytes, then) => {
                    self.receive(image, bytes);
                    *then
                }
                Answer::Wait(time, then) => {
                    tokio::time::sleep(time).await;
                    *then
                }
            };
        }
    }

    async fn movement(&self, image: &ImageName) -> Result<Movement, RuntimeError> {
        let state = self.up("looking at a pull")?;
        let Some(pulls) = state.pulls.get(image).filter(|pulls| pulls.running > 0) else {
            return Ok(Movement::default());
        };
        let known = pulls.bytes > 0;
        Ok(Movement {
            bytes: pulls.bytes,
            total_bytes: state
                .tags
                .get(image)
                .filter(|_| known)
                .map(|tag| tag.size_bytes),
            flows: known,
            queued: pulls.queued,
            mark: pulls.mark,
        })
    }

    async fn local(&self, image: &ImageName) -> Result<Local, RuntimeError> {
        self.look(image, true)
    }

    async fn listed(&self, image: &ImageName) -> Result<Local, RuntimeError> {
        self.look(image, false)
    }

    async fn mend(&self, image: &ImageName) -> Result<Mended, RuntimeError> {
        let mut state = self.up("removing lost content")?;
        let mut mended = Mended::default();
        let Some(copy) = state.names.get_mut(image.as_str()) else {
            return Ok(mended);
        };
        match copy.lost {
            None => {}
            Some(Lost::UnpackedInUse) => mended.kept.push("an unpacked layer is in use".to_owned()),
            Some(Lost::Unpacked | Lost::SharedLayer) => {
                copy.lost = None;
                mended.removed.push("a layer".to_owned());
            }
        }
        Ok(mended)
    }

    async fn images(&self) -> Result<Vec<LocalImage>, RuntimeError> {
        let state = self.up("listing images")?;
        let named = state.names.iter().filter_map(|(name, copy)| {
            Some(LocalImage {
                // As CRI does, which passes over names without a tag or digest.
                image: name.contains([':', '@']).then(|| name.parse().ok())??,
                digest: copy.digest.clone(),
                size_bytes: copy.size_bytes,
            })
        });
        let mut images: Vec<_> = named.collect();
        images.sort_by(|a, b| a.image.cmp(&b.image));
        Ok(images)
    }

    async fn forget(&self, alias: &str) -> Result<(), RuntimeError> {
        self.up("removing an alias")?.names.remove(alias);
        Ok(())
    }

    async fn keep(&self, image: &ImageName, alias: &str, _pin: Pin) -> Result<(), RuntimeError> {
        alias::check(alias)?;
        let operation = "keeping an image";
        let mut state = self.up(operation)?;
        let copy = state.names.get(image.as_str()).cloned();
        let copy = copy.ok_or_else(|| RuntimeError::NotFound {
            operation,
            name: image.to_string(),
        })?;
        let kept = state.names.get(alias).map(|kept| &kept.digest);
        if kept != Some(&copy.digest) {
            state.set(alias, copy);
        }
        Ok(())
    }

    async fn restore(&self, alias: &str, image: &ImageName) -> Result<bool, RuntimeError> {
        let operation = "restoring an image's name";
        let mut state = self.up(operation)?;
        let copy = state.names.get(alias).cloned();
        let there = state.names.get_mut(image.as_str());
        if let Some(there) = there.filter(|there| there.spoiled.is_none()) {
            let carried = copy.into_iter().flat_map(|kept| kept.labels);
            for (key, value) in carried {
                there.labels.entry(key).or_insert(value);
            }
            return Ok(false);
        }
        let copy = copy.ok_or_else(|| RuntimeError::NotFound {
            operation,
            name: alias.to_owned(),
        })?;
        state.set(image.as_str(), copy);
        Ok(true)
    }

    async fn make(&self, program: &Program, alias: &str) -> Result<bool, RuntimeError> {
        alias::check(alias)?;
        let mut state = self.up("making an image")?;
        let kept = state.names.get(alias);
        if kept.is_some_and(|kept| kept.is_of(program) && kept.spoiled.is_none()) {
            return Ok(false);
        }
        state.made += 1;
        let content = Content {
            program: Some(program.layer().to_owned()),
            ..content(
                &format!("sha256:{:064x}", 0xade_0000 + state.made),
                program.layer_bytes(),
            )
        };
        state.set(alias, content);
        Ok(true)
    }

    async fn point(
        &self,
        image: &ImageName,
        alias: &str,
        over: Over<'_>,
    ) -> Result<Pointed, RuntimeError> {
        let operation = "making an image";
        let mut state = self.up(operation)?;
        let kept = state.names.get(alias).cloned();
        let kept = kept.ok_or_else(|| RuntimeError::NotFound {
            operation,
            name: alias.to_owned(),
        })?;
        match (state.names.get(image.as_str()), over) {
            (Some(there), _) if there.digest == kept.digest && there.spoiled.is_none() => {
                return Ok(Pointed::Already);
            }
            (Some(there), Over::Program(program)) if !there.is_of(program) => {
                return Ok(Pointed::Elsewhere);
            }
            _ => {}
        }
        state.set(image.as_str(), kept);
        Ok(Pointed::Now)
    }

    async fn pointing(&self, alias: &str) -> Result<Vec<ImageName>, RuntimeError> {
        let state = self.up("listing an image's names")?;
        let Some(kept) = state.names.get(alias) else {
            return Ok(Vec::new());
        };
        let same = state
            .names
            .iter()
            .filter(|(name, there)| there.digest == kept.digest && name.contains([':', '@']));
        Ok(same.filter_map(|(name, _)| name.parse().ok()).collect())
    }

    async fn image_events(&self) -> Result<ImageEvents, RuntimeError> {
        let events = self.up("subscribing to image events")?.events.subscribe();
        // Some(receiver) until the last item, which is an error.
        let follow = stream::unfold(Some(events), |events| async {
            let mut events = events?;
            match events.recv().await {
                Ok(event) => Some((Ok(event), Some(events))),
                Err(_) => Some((Err(RuntimeError::EventsEnded), None)),
            }
        });
        Ok(follow.boxed())
    }

    async fn version(&self) -> Result<RuntimeVersion, RuntimeError> {
        let _state = self.up("asking for the version")?;
        Ok(RuntimeVersion {
            name: "fake".to_owned(),
            version: "0".to_owned(),
        })
    }
}
