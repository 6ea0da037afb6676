//! A real one-node cluster on this machine, for the tests, the demo and the benchmarks.
//!
//! What runs is what runs in production: etcd, kube-apiserver, kube-controller-manager,
//! kube-scheduler, kubelet, containerd with runc and a registry, with certificates, RBAC and pods.
//! Nothing listens beyond loopback, everything lives under one folder in `target/e2e`, and no
//! process, mount or cgroup outlives the process that started it, however that one ends.
//!
//! This crate must not know how TryLatest works: it starts parts, breaks them and shows what a
//! user would see. What TryLatest should do is said by the tests. [`install`] puts it on a cluster
//! by its own manifests, and [`workload`] makes pods as users do.
//!
//! ```text
//!   suite ──► cluster::Cluster ──► ControlPlane   etcd, kube-apiserver, controller-manager, scheduler
//!                  │          ├──► ContainerdNode  containerd 2.4 or 1.6 ──┐
//!                  │          ├──► Kubelet                                 ▼
//!                  │          └──► registry::Registry ◄── fault proxy ◄── pulls
//!                  └─ all of it in one cluster::Run: folder, addresses, cgroup, clean-up
//! ```
//!
//! In: built programs ([`cluster::Tools`]) and images. Out: clients, sockets, logs in the run's
//! folder, kept when something failed.

pub mod cluster;
pub mod install;
pub mod machine;
pub mod pki;
pub mod process;
pub mod prometheus;
pub mod registry;
pub mod suite;
pub mod testimage;
pub mod usage;
pub mod workload;
