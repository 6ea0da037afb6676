//! A pod, as the API server may send it.

use k8s_openapi::api::core::v1::Pod;
use trylatest_containerd::kubelet_failure;

pub(crate) fn read(bytes: &[u8]) {
    if let Ok(pod) = serde_json::from_slice::<Pod>(bytes) {
        let _ = trylatest_k8s::gated_pod(&pod, kubelet_failure);
    }
}
