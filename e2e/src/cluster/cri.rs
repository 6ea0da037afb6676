//! CRI, as people use it by `crictl`.

use std::path::Path;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::{ImageSpec, RemoveImageRequest};
use tokio::net::UnixStream;
use tonic::transport::{Endpoint, Uri};
use tower::service_fn;

/// Removes the image that the name or ID means, with all its names: `crictl rmi`.
pub(super) async fn remove_image(socket: &Path, image: &str) -> anyhow::Result<()> {
    let socket = socket.to_path_buf();
    let connect = service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is a formality of HTTP/2.
    let endpoint = Endpoint::from_static("http://containerd");
    let channel = endpoint.connect_with_connector(connect).await?;
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
