//! The parts of a control plane with their flags and certificates.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;
use trylatest_bootstrap::Tools;

use super::KUBELET_CLIENT;
use crate::cluster::kubeconfig;
use crate::cluster::part::Part;
use crate::cluster::run::Run;
use crate::pki::{Authority, Leaf, Subject, TokenKeys, apiserver_names};
use crate::process::Spec;

/// What the parts are started from.
pub(super) struct Setup<'a> {
    pub(super) tools: &'a Tools,
    pub(super) run: &'a Run,
    pub(super) authority: &'a Authority,
    pub(super) server: SocketAddr,
}

impl Setup<'_> {
    /// etcd with an authority of its own, and the API server's flags for it.
    pub(super) async fn etcd(&self) -> anyhow::Result<(Part, Vec<String>)> {
        let address = self.run.slot().address();
        let [client, peer] = self.run.slot().free_ports()?;
        let (client, peer) = (
            format!("https://{address}:{client}"),
            format!("https://{address}:{peer}"),
        );
        let authority = Authority::new(&self.run.sub("pki/etcd")?, "etcd")?;
        let names = [address.to_string()];
        let own = authority.issue(
            "etcd",
            &Subject {
                name: "etcd",
                group: None,
                serves: &names,
            },
        )?;
        let user = authority.issue(
            "apiserver",
            &Subject {
                name: "apiserver",
                ..Subject::default()
            },
        )?;
        let spec = self
            .spec("etcd", self.tools.etcd())
            .args([
                format!("--data-dir={}", self.run.folder().join("etcd").display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                // The data is gone with the run: no disk needs to be waited for.
                "--unsafe-no-fsync".to_owned(),
                // The usual 2 GB are full after half a million writes of pods.
                format!("--quota-backend-bytes={}", 8_u64 << 30),
                "--log-level=warn".to_owned(),
            ])
            .args(["", "peer-"].into_iter().flat_map(|side| {
                [
                    format!("--{side}cert-file={}", own.cert.display()),
                    format!("--{side}key-file={}", own.key.display()),
                    format!("--{side}trusted-ca-file={}", authority.cert().display()),
                    format!("--{side}client-cert-auth"),
                ]
            }));
        let flags = vec![
            format!("--etcd-servers={client}"),
            format!("--etcd-cafile={}", authority.cert().display()),
            format!("--etcd-certfile={}", user.cert.display()),
            format!("--etcd-keyfile={}", user.key.display()),
        ];
        Ok((Part::start_new(spec).await?, flags))
    }

    pub(super) async fn apiserver(
        &self,
        etcd: &[String],
        keys: &TokenKeys,
        audit: &Path,
    ) -> anyhow::Result<Part> {
        let names = apiserver_names(self.server.ip());
        let serving = self.authority.issue(
            "apiserver",
            &Subject {
                name: "kube-apiserver",
                group: None,
                serves: &names,
            },
        )?;
        let kubelets = self.authority.issue(
            "apiserver-kubelets",
            &Subject {
                name: KUBELET_CLIENT,
                ..Subject::default()
            },
        )?;
        let policy = self.audit_policy()?;
        let authority = self.authority.cert();
        let spec = self
            .spec("kube-apiserver", self.tools.kube_apiserver())
            .args(etcd)
            .args([
                format!("--bind-address={}", self.server.ip()),
                format!("--advertise-address={}", self.server.ip()),
                format!("--secure-port={}", self.server.port()),
                format!("--client-ca-file={}", authority.display()),
                format!("--tls-cert-file={}", serving.cert.display()),
                format!("--tls-private-key-file={}", serving.key.display()),
                format!("--kubelet-certificate-authority={}", authority.display()),
                format!("--kubelet-client-certificate={}", kubelets.cert.display()),
                format!("--kubelet-client-key={}", kubelets.key.display()),
                format!("--service-account-key-file={}", keys.public.display()),
                format!(
                    "--service-account-signing-key-file={}",
                    keys.private.display()
                ),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
                format!("--service-cluster-ip-range={}", self.run.slot().services()),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--allow-privileged=true".to_owned(),
                // A loopback address is none that an EndpointSlice may hold.
                "--endpoint-reconciler-type=none".to_owned(),
                format!("--audit-policy-file={}", policy.display()),
                format!("--audit-log-path={}", audit.display()),
            ]);
        Part::start_new(spec).await
    }

    pub(super) async fn controllers(&self, keys: &TokenKeys) -> anyhow::Result<Part> {
        let kubeconfig = self.component("kube-controller-manager")?;
        let spec = self
            .spec(
                "kube-controller-manager",
                self.tools.kube_controller_manager(),
            )
            .args([
                format!("--kubeconfig={}", kubeconfig.display()),
                format!("--root-ca-file={}", self.authority.cert().display()),
                format!(
                    "--service-account-private-key-file={}",
                    keys.private.display()
                ),
                "--use-service-account-credentials=true".to_owned(),
                // It makes some forty accounts before it works; at its usual 20 requests a second
                // that takes 4 s.
                "--kube-api-qps=200".to_owned(),
                "--kube-api-burst=400".to_owned(),
                "--leader-elect=false".to_owned(),
                // No metrics of it are read here, so it needs no port.
                "--secure-port=0".to_owned(),
            ]);
        Part::start_new(spec).await
    }

    pub(super) async fn scheduler(&self) -> anyhow::Result<Part> {
        let kubeconfig = self.component("kube-scheduler")?;
        let spec = self
            .spec("kube-scheduler", self.tools.kube_scheduler())
            .args([
                format!("--kubeconfig={}", kubeconfig.display()),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
            ]);
        Part::start_new(spec).await
    }

    /// The kubeconfig of a component that is known as `system:NAME`.
    fn component(&self, name: &str) -> anyhow::Result<PathBuf> {
        let user = format!("system:{name}");
        let leaf: Leaf = self.authority.issue(
            name,
            &Subject {
                name: &user,
                ..Subject::default()
            },
        )?;
        let file = self.run.folder().join(format!("{name}.kubeconfig"));
        kubeconfig::write(&file, self.server, self.authority, &leaf)
    }

    /// Who changed what, without the contents.
    fn audit_policy(&self) -> anyhow::Result<PathBuf> {
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "verbs": ["get", "list", "watch"]},
                {"level": "None", "resources": [{"group": "coordination.k8s.io"}]},
                {"level": "Metadata"},
            ],
        });
        let file = self.run.folder().join("audit-policy.yaml");
        fs::write(&file, policy.to_string()).context("write the audit policy")?;
        Ok(file)
    }

    fn spec(&self, name: &str, program: PathBuf) -> Spec {
        Spec::new(name, program, self.run.log(name))
    }
}
