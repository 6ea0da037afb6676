//! CRI, as people use it by `crictl`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{ImageSpec, ListContainersRequest, ListImagesRequest, RemoveImageRequest};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let socket = socket.to_path_buf();
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is a formality of HTTP/2.
    let endpoint = Endpoint::from_static("http://containerd");
    Ok(endpoint.connect_with_connector(connect).await?)
}

/// Removes the image that the name or ID means, with all its names: `crictl rmi`.
pub(super) async fn remove_image(socket: &Path, image: &str) -> anyhow::Result<()> {
    let channel = connect(socket).await?;
    let request = RemoveImageRequest {
        image: Some(ImageSpec {
            image: image.to_owned(),
            ..ImageSpec::default()
        }),
    };
    let removed = ImageServiceClient::new(channel).remove_image(request).await;
    removed.with_context(|| format!("remove {image}"))?;
    Ok(())
}

/// Removes every image that no container uses and that is not pinned: `crictl rmi --prune`.
pub(super) async fn remove_unpinned_images(socket: &Path) -> anyhow::Result<()> {
    let channel = connect(socket).await?;
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let containers = runtime.list_containers(ListContainersRequest::default());
    let containers = containers.await?.into_inner().containers;
    let used: BTreeSet<String> = containers.into_iter().map(|used| used.image_ref).collect();
    let mut images = ImageServiceClient::new(channel);
    let all = images.list_images(ListImagesRequest::default()).await?;
    for image in all.into_inner().images {
        let names = [&image.id].into_iter().chain(&image.repo_digests);
        if !image.pinned && !names.into_iter().any(|name| used.contains(name)) {
            remove_image(socket, &image.id).await?;
        }
    }
    Ok(())
}
