# What is worth typing often. `just` alone lists it. Nothing here does more than its one command says;
# .ci/run does not use it, so that neither can hide from the other.

_default:
    @just --list --unsorted

# The whole story on a real one-node cluster (needs root); --keep, --containerd 1.6, --help
demo *args:
    cargo demo -- {{ args }}

# All tests, with everything brought in that they need
verify *args:
    cargo verify {{ args }}

# How long pods take with each policy, and what the agent needs (needs root)
bench *args:
    cargo run --quiet --package trylatest-bootstrap -- bench -- {{ args }}

# Pods come and go while everything fails at random (needs root); --minutes, --seed, --help
soak *args:
    cargo run --quiet --package trylatest-bootstrap -- soak -- {{ args }}

# What many simulated agents cost an API server (needs root); --agents, --pods, --idle, --help
scale *args:
    cargo run --quiet --package trylatest-bootstrap -- scale -- {{ args }}

# TryLatest's container image, target/image/trylatest.tar; --arch arm64 for another machine's
image *args:
    cargo run --quiet --package trylatest-bootstrap -- image {{ args }}

# Man pages and shell completion of `trylatest` in FOLDER, for machines that get the program itself
manual folder="target/manual": _to-build
    cargo run --quiet --package trylatest --example manual -- {{ folder }}

# A one-node cluster to play with (needs root); --help
cluster *args:
    cargo run --quiet --package trylatest-bootstrap -- cluster -- {{ args }}

_to-build:
    cargo run --quiet --package trylatest-bootstrap -- tools --to-build

# Bring in and build what the cluster needs
tools:
    cargo run --quiet --package trylatest-bootstrap -- tools

# What CI says to a change before it runs a test
lint: _to-build
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- --deny warnings
    RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --document-private-items --quiet

# The same for each crate alone, with no features of dependencies but those it asks for itself
lint-alone: _to-build
    git ls-files '*/Cargo.toml' | xargs -I@ cargo clippy --manifest-path @ --all-targets -- --deny warnings

# Licences, duplicate crates, sources and advisories (needs cargo-deny)
deny:
    cargo deny check

# Tests that need neither root nor a cluster
test *args: _to-build
    cargo test --workspace --exclude trylatest-e2e {{ args }}

# Everything that is read from outside, under a fuzzer: 10 s each, or SECONDS, or --inputs N; --fast
fuzz *args: _to-build
    e2e/fuzz/run {{ args }}

# The agent's heap over a simulated day of outage with 10,000 pods (minutes)
test-day:
    cargo test --config profile.dev.package.trylatest-core.opt-level=3 --package trylatest --lib -- \
        --exact agent::day::a_day_of_outage --ignored --nocapture

# Grafana's dashboards and the operator's alerts from their sources in manifests/monitoring; --check
monitoring *args:
    cargo run --quiet --package trylatest-monitoring -- {{ args }}
