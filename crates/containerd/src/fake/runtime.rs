//! The fake as a runtime: what its calls do.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::MutexGuard;

use futures::{StreamExt, stream};
use trylatest_core::digest::Digest;
use trylatest_core::image::ImageName;
use trylatest_core::keep::KeptCopy;
use trylatest_core::outcome::{Failure, FailureClass};
use trylatest_core::record::RolledBack;

use super::{Answer, Content, FakeContainerd, Lost, Pulls, State, content};
use crate::alias::{self, Journal};
use crate::containerd::locked;
use crate::program::Program;
use crate::runtime::{
    Discarded, ImageChange, ImageEvents, ImageRuntime, Local, LocalImage, Mended, Movement, Over,
    Pin, PodEvents, Pointed, PullError, RuntimeError, RuntimeVersion, Seen, Spoiled, Users,
    Verified,
};

impl FakeContainerd {
    /// The state, if containerd is up.
    fn up(&self, operation: &'static str) -> Result<MutexGuard<'_, State>, RuntimeError> {
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

/// Who has something on top of a copy that has lost this.
fn users(lost: Option<Lost>) -> Option<Users> {
    match lost? {
        Lost::FileInUse | Lost::UnpackedInUse => Some(Users {
            names: vec!["default/pod".to_owned()],
        }),
        Lost::Unpacked | Lost::SharedLayer | Lost::File | Lost::FileAndLayers => None,
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
        let look = self.up("looking at a pull")?.look;
        tokio::time::sleep(look).await;
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
            behind: false,
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
            // Nobody can see it.
            None | Some(Lost::File | Lost::FileInUse | Lost::FileAndLayers) => {}
            Some(Lost::UnpackedInUse) => mended.kept.push("an unpacked layer is in use".to_owned()),
            Some(Lost::Unpacked | Lost::SharedLayer) => {
                copy.lost = None;
                mended.removed.push("a layer".to_owned());
            }
        }
        Ok(mended)
    }

    async fn verify(&self, image: &ImageName, seen: &Seen<'_>) -> Result<Verified, RuntimeError> {
        let state = self.up("reading a layer")?;
        let Some(copy) = state.names.get(image.as_str()) else {
            return Ok(Verified {
                bytes: 0,
                spoiled: vec![Spoiled {
                    digest: None,
                    why: "there is no such image".to_owned(),
                }],
            });
        };
        seen(copy.size_bytes, copy.size_bytes);
        let mut spoiled = Vec::new();
        if let Some(why) = &copy.spoiled {
            spoiled.push(Spoiled {
                digest: None,
                why: why.clone(),
            });
        }
        if let Some(Lost::SharedLayer | Lost::FileAndLayers) = copy.lost {
            spoiled.push(Spoiled {
                digest: Some("sha256:layer".to_owned()),
                why: "layer sha256:layer is missing".to_owned(),
            });
        }
        Ok(Verified {
            bytes: copy.size_bytes,
            spoiled,
        })
    }

    async fn users(&self, image: &ImageName) -> Result<Option<Users>, RuntimeError> {
        let state = self.up("listing snapshots")?;
        let copy = state.names.get(image.as_str());
        Ok(copy.and_then(|copy| users(copy.lost)))
    }

    async fn discard(
        &self,
        image: &ImageName,
        _spoiled: &[Spoiled],
    ) -> Result<Discarded, RuntimeError> {
        let mut state = self.up("removing an unpacked layer")?;
        let copy = state.names.get(image.as_str()).cloned();
        let Some(Content { digest, lost, .. }) = copy else {
            return Ok(Discarded::default());
        };
        if let Some(users) = users(lost) {
            return Ok(Discarded {
                removed: 0,
                kept: 1,
                users,
            });
        }
        let same = state.names.values_mut();
        for copy in same.filter(|copy| copy.digest == digest) {
            copy.lost = None;
            if let Some(Lost::SharedLayer | Lost::FileAndLayers) = lost {
                copy.spoiled = Some("it is not unpacked and its layers are gone".to_owned());
            }
        }
        Ok(Discarded {
            removed: 1,
            ..Discarded::default()
        })
    }

    async fn images(&self) -> Result<Vec<LocalImage>, RuntimeError> {
        let state = self.up("listing images")?;
        let named = state.names.iter().filter_map(|(name, copy)| {
            Some(LocalImage {
                // As CRI does, which ignores names without a tag or digest.
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

    async fn set_aside(
        &self,
        image: &ImageName,
        alias: &str,
    ) -> Result<Option<String>, RuntimeError> {
        alias::check(alias)?;
        let mut state = self.up("taking an image's name away")?;
        let Some(copy) = state.names.get(image.as_str()).cloned() else {
            return Ok(None);
        };
        let digest = copy.digest.clone();
        state.set(alias, copy);
        state.names.remove(image.as_str());
        state.tell(image.as_str(), ImageChange::Deleted);
        Ok(Some(digest))
    }

    async fn journal(&self, of: Journal) -> Result<Vec<(String, ImageName)>, RuntimeError> {
        let state = self.up("listing images")?;
        let aliases = state.names.keys();
        Ok(aliases
            .filter_map(|alias| Some((alias.clone(), of.image_of(alias)?)))
            .collect())
    }

    async fn keep_copy(&self, copy: &KeptCopy) -> Result<(), RuntimeError> {
        let operation = "keeping a copy";
        let alias = alias::copy(copy);
        let digest = copy.digest.as_str();
        let by_digest = format!("{}@{digest}", copy.image.repository());
        let mut state = self.up(operation)?;
        if let Some(refusals) = state.refused.get_mut(&alias) {
            *refusals += 1;
            return Err(RuntimeError::Answered {
                operation,
                code: tonic::Code::InvalidArgument,
                message: "scripted".to_owned(),
            });
        }
        let names = [alias.as_str(), copy.image.as_str(), &by_digest];
        let mut stored = names.into_iter().filter_map(|name| state.names.get(name));
        let there = stored.find(|there| there.digest == digest);
        let content = there.cloned().ok_or_else(|| RuntimeError::NotFound {
            operation,
            name: copy.image.to_string(),
        })?;
        let kept = Content {
            kept: Some(copy.clone()),
            labels: HashMap::new(),
            ..content
        };
        state.set(&alias, kept);
        Ok(())
    }

    async fn kept_copies(&self) -> Result<Vec<KeptCopy>, RuntimeError> {
        let state = self.up("listing kept copies")?;
        let aliases = state
            .names
            .iter()
            .filter(|(name, _)| name.starts_with(alias::COPIES));
        Ok(aliases
            .filter_map(|(_, content)| content.kept.clone())
            .collect())
    }

    async fn digests(&self, image: &ImageName) -> Result<BTreeSet<Digest>, RuntimeError> {
        let state = self.up("asking CRI for an image")?;
        let content = state.names.get(image.as_str());
        Ok(content
            .and_then(|content| content.digest.parse().ok())
            .into_iter()
            .collect())
    }

    async fn pointed(
        &self,
        images: &BTreeSet<ImageName>,
    ) -> Result<BTreeMap<ImageName, Digest>, RuntimeError> {
        let state = self.up("looking images up")?;
        let pointed = images.iter().filter_map(|image| {
            let content = state.names.get(image.as_str())?;
            Some((image.clone(), content.digest.parse().ok()?))
        });
        Ok(pointed.collect())
    }

    async fn mark_rolled_back(
        &self,
        image: &ImageName,
        back: &RolledBack,
    ) -> Result<(), RuntimeError> {
        let operation = "writing down a rollback";
        let mut state = self.up(operation)?;
        let copy = alias::copy_at(image, &back.to);
        let kept = state.names.get(&copy).cloned();
        let kept = kept.ok_or(RuntimeError::NotFound {
            operation,
            name: copy,
        })?;
        let mark = Content {
            kept: None,
            rolled_back: Some(back.clone()),
            ..kept
        };
        state.set(&alias::rolled_back(image), mark);
        Ok(())
    }

    async fn rolled_back(&self) -> Result<BTreeMap<ImageName, RolledBack>, RuntimeError> {
        let state = self.up("listing rollbacks")?;
        let aliases = state.names.iter();
        Ok(aliases
            .filter_map(|(alias, content)| {
                let image = alias::rolled_back_image(alias)?;
                Some((image, content.rolled_back.clone()?))
            })
            .collect())
    }

    async fn restore_kept(&self, image: &ImageName) -> Result<bool, RuntimeError> {
        let mut copies = self.kept_copies().await?;
        copies.retain(|copy| copy.image == *image);
        let newest = copies.iter().max_by_key(|copy| copy.since);
        match newest.filter(|newest| newest.public) {
            Some(newest) => {
                let alias = alias::copy(newest);
                self.restore(&alias, image).await
            }
            None => Ok(false),
        }
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

    async fn pod_events(&self, _container: &str) -> Result<PodEvents, RuntimeError> {
        let mut pods = self.up("listing containers")?.pod_event.subscribe();
        pods.mark_changed();
        let follow = stream::unfold(Some(pods), |pods| async {
            let mut pods = pods?;
            match pods.changed().await {
                Ok(()) => {
                    let now = pods.borrow_and_update().clone();
                    Some((Ok(now), Some(pods)))
                }
                Err(_) => Some((Err(RuntimeError::EventsEnded), None)),
            }
        });
        Ok(follow.boxed())
    }

    async fn version(&self) -> Result<RuntimeVersion, RuntimeError> {
        let state = self.up("asking for the version")?;
        Ok(RuntimeVersion {
            name: "containerd".to_owned(),
            version: state.version.to_owned(),
        })
    }
}
