//! Every name that TryLatest puts on an object, and nothing else. The manifests use the same names in
//! CEL; a test in `e2e` compares the two.

/// The name of an annotation or a label of ours.
macro_rules! key {
    ($name:literal) => {
        concat!("trylatest.dev/", $name)
    };
}

/// What the name of every annotation and label of ours begins with.
pub const PREFIX: &str = key!("");

/// Pod or pod-template annotation, written by a person: the names of the TryLatest containers,
/// comma-separated, or `*`. On a pod, admission replaces it with the resolved names.
pub const CONTAINERS: &str = key!("containers");

/// The same for image volumes.
pub const VOLUMES: &str = key!("volumes");

/// What an image volume's name begins with where it stands beside containers' names, as in [`LITERAL`] and in a
/// release. No container's name has a slash.
pub const VOLUME_PREFIX: &str = "volume/";

/// Pod-template annotation, written by admission: the containers whose template said `TryLatest`, and the image
/// volumes with [`VOLUME_PREFIX`].
pub const LITERAL: &str = key!("literal");

/// Pod annotation: how long to try before falling back, e.g. `5s`.
pub const TIMEOUT: &str = key!("timeout");

/// Pod annotation: refuse a cached copy whose tag was last confirmed longer ago, e.g. `24h`.
pub const MAX_AGE: &str = key!("max-age");

/// Pod annotation: the failure classes that allow the cached copy, comma-separated.
pub const FALLBACK_ON: &str = key!("fallback-on");

/// Pod annotation: `true` if it is to start from the digest that its rollout has on the node already.
pub const SAME_DIGEST: &str = key!("same-digest");

/// Pod or pod-template annotation, or namespace label: how pods are held, [`HOLD_NONE`] or [`HOLD_GATE`]. The
/// pod's own counts before its namespace's, which admission copies to the pod.
pub const HOLD: &str = key!("hold");

/// The value of [`HOLD`] without a gate: the pod starts at once, as with `IfNotPresent`.
pub const HOLD_NONE: &str = "none";

/// The value of [`HOLD`] with a gate, which is the default.
pub const HOLD_GATE: &str = "gate";

/// Pod label, set by admission; what the agent's watch selects.
pub const GATED: &str = key!("gated");

/// The value of [`GATED`] of a pod with a gate.
pub const GATED_VALUE: &str = "true";

/// The value of [`GATED`] of a pod from which admission removed the gate again, because another
/// policy gave the gate `Always`. The agent reports such a pod.
pub const GATED_OVERRULED: &str = "overruled";

/// The value of [`GATED`] of a pod that is to have no gate ([`HOLD_NONE`]).
pub const GATED_NONE: &str = "none";

/// Pod annotation, written by the agent: the release as JSON (see [`crate::release`]).
pub const RELEASED: &str = key!("released");

/// Pod annotation, written by the agent while it works on a pod: a sign of life and the pull's
/// progress as JSON (see [`crate::release`]).
pub const PROGRESS: &str = key!("progress");

/// Node annotation: one line for `kubectl describe node`.
pub const NODE_SUMMARY: &str = key!("summary");

/// Node annotation: the node's TryLatest images, and the registries that it does not ask for each pod now, one on each
/// line, bounded in size.
pub const NODE_IMAGES: &str = key!("images");

/// Node condition: `True` while a pod of this node runs a copy whose last try failed.
pub const NODE_CONDITION: &str = "TryLatestFallback";

/// The name of the init container that holds a pod, and of its volume.
pub const GATE: &str = "trylatest-gate";

/// The field manager of every write, and the reporting controller of every Event.
pub const FIELD_MANAGER: &str = "trylatest-agent";
