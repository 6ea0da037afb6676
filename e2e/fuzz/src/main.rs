//! Everything that TryLatest reads from outside, under a fuzzer. `e2e/fuzz/run` builds it so that libFuzzer sees which
//! code an input reaches, and runs it.
#![no_main]

mod annotations;
mod config;
mod containerd;
mod gate;
mod image;
mod pod;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

type Target = fn(&[u8]);

/// What reads an input, by name. The folder of that name in `seeds` has inputs to begin with.
const TARGETS: [(&str, Target); 7] = [
    ("annotations", |bytes| annotations::read(text(bytes))),
    ("config", |bytes| config::read(text(bytes))),
    ("containerd", containerd::read),
    ("gate", |bytes| gate::read(text(bytes))),
    ("image", |bytes| image::read(text(bytes))),
    ("index", trylatest_index::fuzz::entry),
    ("pod", pod::read),
];

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    #[expect(
        clippy::disallowed_methods,
        reason = "the command line belongs to libFuzzer"
    )]
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.into_iter().find(|(target, _)| *target == name);
    found.expect("FUZZ_TARGET names a target").1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));

/// As much of the input as is text.
fn text(bytes: &[u8]) -> &str {
    let first = bytes.utf8_chunks().next();
    first.map_or("", |chunk| chunk.valid())
}
