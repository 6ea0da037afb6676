//! The parts of a cluster, each usable alone, and all of them together.
