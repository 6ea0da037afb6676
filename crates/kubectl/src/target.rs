//! What a command is about: `KIND/NAME`, or a pod.

use std::fmt;
use std::str::FromStr;

use kube::api::{ApiResource, GroupVersionKind};
use trylatest_core::namespace::NamespaceName;

/// The kinds that a command can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bare pod, or any other.
    Pod,
    /// `apps/v1`.
    Deployment,
    /// `apps/v1`.
    StatefulSet,
    /// `apps/v1`.
    DaemonSet,
    /// `apps/v1`.
    ReplicaSet,
    /// The core group.
    ReplicationController,
    /// `batch/v1`.
    Job,
    /// `batch/v1`.
    CronJob,
    /// The core group.
    Namespace,
}

/// What is known of a kind: the names by which kubectl knows it, its group, and where its pod template is.
struct Known {
    kind: Kind,
    /// The first is the one that we print, the second the plural.
    names: &'static [&'static str],
    group: &'static str,
    camel: &'static str,
    template: Option<&'static str>,
}

const KNOWN: [Known; 9] = [
    Known {
        kind: Kind::Deployment,
        names: &["deployment", "deployments", "deploy"],
        group: "apps",
        camel: "Deployment",
        template: Some("/spec/template"),
    },
    Known {
        kind: Kind::StatefulSet,
        names: &["statefulset", "statefulsets", "sts"],
        group: "apps",
        camel: "StatefulSet",
        template: Some("/spec/template"),
    },
    Known {
        kind: Kind::DaemonSet,
        names: &["daemonset", "daemonsets", "ds"],
        group: "apps",
        camel: "DaemonSet",
        template: Some("/spec/template"),
    },
    Known {
        kind: Kind::ReplicaSet,
        names: &["replicaset", "replicasets", "rs"],
        group: "apps",
        camel: "ReplicaSet",
        template: Some("/spec/template"),
    },
    Known {
        kind: Kind::ReplicationController,
        names: &["replicationcontroller", "replicationcontrollers", "rc"],
        group: "",
        camel: "ReplicationController",
        template: Some("/spec/template"),
    },
    Known {
        kind: Kind::Job,
        names: &["job", "jobs"],
        group: "batch",
        camel: "Job",
        template: Some("/spec/template"),
    },
    Known {
        kind: Kind::CronJob,
        names: &["cronjob", "cronjobs", "cj"],
        group: "batch",
        camel: "CronJob",
        template: Some("/spec/jobTemplate/spec/template"),
    },
    Known {
        kind: Kind::Pod,
        names: &["pod", "pods", "po"],
        group: "",
        camel: "Pod",
        template: None,
    },
    Known {
        kind: Kind::Namespace,
        names: &["namespace", "namespaces", "ns"],
        group: "",
        camel: "Namespace",
        template: None,
    },
];

impl Kind {
    /// Every kind, the most usual first.
    pub fn all() -> impl Iterator<Item = Self> {
        KNOWN.iter().map(|known| known.kind)
    }

    fn known(self) -> &'static Known {
        let known = KNOWN.iter().find(|known| known.kind == self);
        known.expect("every kind is in the table")
    }

    /// The name in `KIND/NAME`.
    pub fn as_str(self) -> &'static str {
        self.known().names[0]
    }

    /// Where such an object has its pod template, as a JSON pointer.
    pub fn template(self) -> Option<&'static str> {
        self.known().template
    }

    /// How the API server knows it.
    pub fn resource(self) -> ApiResource {
        let Known {
            group,
            camel,
            names,
            ..
        } = self.known();
        let gvk = GroupVersionKind::gvk(group, "v1", camel);
        ApiResource::from_gvk_with_plural(&gvk, names[1])
    }

    /// Reads a kind as kubectl does: in the singular, the plural or short, with or without its group.
    fn parse(text: &str) -> Option<Self> {
        let lower = text.to_lowercase();
        let (name, group) = lower.split_once('.').unwrap_or((&lower, ""));
        let is_meant = |known: &&Known| {
            let in_group = matches!(group, "" | "v1")
                || group == known.group
                || group == format!("v1.{}", known.group);
            known.names.contains(&name) && in_group
        };
        KNOWN.iter().find(is_meant).map(|known| known.kind)
    }
}

/// An object that a command is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let how = "write it like deployment/my-app";
        let (kind, name) = text.split_once('/').ok_or(how)?;
        let known = || {
            let names: Vec<_> = Kind::all().map(Kind::as_str).collect();
            format!("unknown kind {kind:?}; known are {}", names.join(", "))
        };
        let kind = Kind::parse(kind).ok_or_else(known)?;
        if name.is_empty() || name.contains('/') {
            return Err(how.to_owned());
        }
        Ok(Self {
            kind,
            name: name.to_owned(),
        })
    }
}

/// A pod that a command is about: `NAME`, `pod/NAME`, or `NAMESPACE/NAME` as `status` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace, if that was named here.
    pub namespace: Option<NamespaceName>,
    /// Its name.
    pub name: String,
}

impl FromStr for PodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let how = "write a pod like my-app-7d4f9c, pod/my-app-7d4f9c or my-namespace/my-app-7d4f9c";
        let (namespace, name) = match text.split_once('/') {
            None => (None, text),
            Some((kind, name)) => match Kind::parse(kind) {
                Some(Kind::Pod) => (None, name),
                Some(_) => return Err(how.to_owned()),
                None => {
                    let namespace = kind.parse::<NamespaceName>();
                    let namespace = namespace.map_err(|error| format!("{error}; {how}"))?;
                    (Some(namespace), name)
                }
            },
        };
        if name.is_empty() || name.contains('/') {
            return Err(how.to_owned());
        }
        let name = name.to_owned();
        Ok(Self { namespace, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_kubectl_reads_them() {
        for (written, read) in [
            ("deploy/a", "deployment/a"),
            ("Deployment/a", "deployment/a"),
            ("deployments.apps/a", "deployment/a"),
            ("deployments.v1.apps/a", "deployment/a"),
            ("sts/a", "statefulset/a"),
            ("rc/a", "replicationcontroller/a"),
            ("ns/a", "namespace/a"),
            ("cj/a.b", "cronjob/a.b"),
        ] {
            let target: Target = written.parse().unwrap();
            assert_eq!(target.to_string(), read);
        }
        for bad in [
            "a",
            "deploy",
            "deploy/",
            "deploy/a/b",
            "deployments.batch/a",
            "x/a",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pod_may_be_named_with_its_namespace() {
        for (written, namespace, name) in [
            ("app-1", None, "app-1"),
            ("pod/app-1", None, "app-1"),
            ("po/app-1", None, "app-1"),
            ("shop/app-1", Some("shop"), "app-1"),
        ] {
            let pod: PodName = written.parse().unwrap();
            assert_eq!(pod.name, name, "{written}");
            let own = pod.namespace.as_ref().map(NamespaceName::as_str);
            assert_eq!(own, namespace, "{written}");
        }
        for bad in [
            "",
            "pod/",
            "shop/",
            "deploy/app",
            "shop/app/1",
            "Shop/app",
            "/app",
        ] {
            let why = bad.parse::<PodName>().unwrap_err();
            assert!(why.contains("write a pod like"), "{bad}: {why}");
        }
    }

    #[test]
    fn every_kind_is_in_the_table() {
        for kind in Kind::all() {
            let resource = kind.resource();
            assert_eq!(resource.kind.to_lowercase(), kind.as_str());
            assert_eq!(
                kind.template().is_some(),
                !matches!(kind, Kind::Pod | Kind::Namespace)
            );
        }
    }
}
