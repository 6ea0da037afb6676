//! For how long containers have run, on a clock that does not jump.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::UsedImage;
use crate::digest::Digest;
use crate::image::ImageName;
use crate::time::Now;

/// Since when copies run without a break. The kubelet says so by the wall clock, which a node without a battery for it
/// sets some time after its boot: years would then have passed at once.
#[derive(Debug, Default)]
pub struct Running {
    /// What the kubelet says, and when it was first seen to say so.
    seen: BTreeMap<(ImageName, Digest), (Timestamp, Duration)>,
}

impl Running {
    /// Puts the time that has passed since each copy was first seen to run in the place of what the kubelet says. So an
    /// agent that starts begins to count; what is [proven](super::KeptCopy::proven) already stays so.
    pub fn measure(&mut self, used: &mut [UsedImage], now: Now) {
        let before = std::mem::take(&mut self.seen);
        for image in used {
            for (digest, runs) in &mut image.runs {
                let Some(since) = runs else { continue };
                let key = (image.image.clone(), digest.clone());
                let known = before.get(&key).filter(|(said, _)| said == since);
                let up = known.map_or(now.up, |(_, up)| *up);
                self.seen.insert(key, (*since, up));
                *since = ago(now, now.up.saturating_sub(up));
            }
        }
    }
}

/// The wall clock may show a time with little before it.
fn ago(now: Now, time: Duration) -> Timestamp {
    now.wall.checked_sub(time).unwrap_or(Timestamp::MIN)
}
