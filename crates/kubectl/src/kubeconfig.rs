//! The user's kubeconfig and proxy, as kubectl understands them: the library differs in some points.

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::args::ClusterArgs;

/// How to reach the cluster that the user means: by the kubeconfig, or without any in a pod, by its service account.
///
/// # Errors
/// There is neither, or the kubeconfig cannot be used.
pub(crate) async fn config(args: &ClusterArgs) -> anyhow::Result<Config> {
    let ClusterArgs {
        kubeconfig,
        context,
        request_timeout: _,
    } = args;
    let read = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => read(),
    };
    let read = match read {
        Err(error) if kubeconfig.is_none() && context.is_none() && is_absent(&error) => {
            return Config::incluster().map_err(|_| {
                anyhow!("no cluster: {error}, and this is no pod with a service account; name a file with --kubeconfig")
            });
        }
        read => read?,
    };
    let own = own_proxy(&read, context.as_deref());
    let options = KubeConfigOptions {
        context: context.clone(),
        ..KubeConfigOptions::default()
    };
    let mut config = Config::from_custom_kubeconfig(read, &options).await?;
    let server = &config.cluster_url;
    match own {
        // The library also looks whether NO_PROXY names the proxy.
        Some(own) => config.proxy_url = Some(own.parse().context("the kubeconfig's proxy-url")?),
        None if is_direct(&Matcher::from_env(), server) => config.proxy_url = None,
        None => {}
    }
    Ok(config)
}

/// The files that KUBECONFIG lists, merged, or the user's own. Like kubectl, it passes over those that do not exist.
///
/// # Errors
/// One of them cannot be read.
pub(crate) fn read() -> Result<Kubeconfig, KubeconfigError> {
    let listed = env::var_os("KUBECONFIG").unwrap_or_default();
    let there: Vec<PathBuf> = env::split_paths(&listed).filter(|p| p.exists()).collect();
    if there.is_empty() {
        // Also to say what is missing.
        return Kubeconfig::read();
    }
    merged(&there)
}

fn merged(paths: &[PathBuf]) -> Result<Kubeconfig, KubeconfigError> {
    paths.iter().try_fold(Kubeconfig::default(), |all, path| {
        all.merge(Kubeconfig::read_from(path)?)
    })
}

/// Whether no file was there. One that cannot be used does not let us ask another cluster.
fn is_absent(error: &KubeconfigError) -> bool {
    match error {
        KubeconfigError::FindPath => true,
        KubeconfigError::ReadConfig(error, _) => error.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

/// The proxy that the kubeconfig itself names for the cluster.
fn own_proxy(read: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let context = context.or(read.current_context.as_deref())?;
    let named = read.contexts.iter().find(|named| named.name == context)?;
    let cluster = &named.context.as_ref()?.cluster;
    let named = (read.clusters.iter()).find(|named| named.name == *cluster)?;
    let proxy = named.cluster.as_ref()?.proxy_url.clone();
    proxy.filter(|proxy| !proxy.is_empty())
}

/// Whether the API server is asked without the environment's proxy: NO_PROXY names it, or it is on this machine, as Go
/// has it (`golang.org/x/net/http/httpproxy`). The library compares NO_PROXY with the proxy's own address.
fn is_direct(environment: &Matcher, server: &http::Uri) -> bool {
    let host = server.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    is_here || environment.intercept(server).is_none()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_cluster_that_no_proxy_names_is_asked_directly() {
        let matcher = Matcher::builder()
            .https("http://proxy.example:3128")
            .no("10.0.0.0/8,.corp.example,")
            .build();
        for (server, direct) in [
            ("https://10.1.2.3:6443", true),
            ("https://api.corp.example", true),
            ("https://127.0.0.1:6443", true),
            ("https://[::1]:6443", true),
            ("https://localhost:6443", true),
            ("https://192.0.2.1:6443", false),
            ("https://api.example", false),
        ] {
            let uri = server.parse().unwrap();
            assert_eq!(is_direct(&matcher, &uri), direct, "{server}");
        }
    }

    #[test]
    fn the_contexts_own_proxy_is_found() {
        let read: Kubeconfig = serde_saphyr::from_str(
            "clusters:\n- {name: a, cluster: {server: https://a, proxy-url: http://p}}\n- {name: b, cluster: \
             {server: https://b}}\ncontexts:\n- {name: a, context: {cluster: a}}\n- {name: b, context: {cluster: \
             b}}\ncurrent-context: b\n",
        )
        .unwrap();
        assert_eq!(own_proxy(&read, Some("a")).as_deref(), Some("http://p"));
        assert_eq!(own_proxy(&read, None), None);
        assert_eq!(own_proxy(&read, Some("c")), None);
    }

    #[test]
    fn files_are_merged_and_an_absent_one_is_told() {
        let folder = env::temp_dir().join(format!("trylatest-kubeconfig-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [one, two] = ["one", "two"].map(|name| folder.join(name));
        fs::write(&one, "current-context: first\n").unwrap();
        fs::write(&two, "current-context: second\ncontexts: [{name: x}]\n").unwrap();
        let all = merged(&[one, two.clone()]).unwrap();
        assert_eq!(all.current_context.as_deref(), Some("first"));
        assert_eq!(all.contexts.len(), 1);
        let absent = merged(&[folder.join("three")]).unwrap_err();
        assert!(is_absent(&absent), "{absent}");
        fs::write(&two, "current-context: [\n").unwrap();
        let broken = merged(&[two]).unwrap_err();
        assert!(!is_absent(&broken), "{broken}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
