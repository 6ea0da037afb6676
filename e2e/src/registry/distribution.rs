//! The registry's own API, by its back door: no fault is in the way, and nothing is counted.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, Request, StatusCode};
use trylatest_bootstrap::oci;

use super::upstream;

/// What the registry calls a manifest's digest.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Every kind of manifest, so that none is converted.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest or an index, as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its bytes; their hash is its digest.
    pub bytes: Bytes,
    /// E.g. `application/vnd.oci.image.manifest.v1+json`.
    pub media_type: String,
}

/// The registry behind the proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Distribution {
    address: SocketAddr,
}

/// A whole answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Distribution {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    pub(super) fn address(self) -> SocketAddr {
        self.address
    }

    pub(super) async fn ping(self) -> anyhow::Result<()> {
        self.ask(Method::GET, "/v2/", None, StatusCode::OK)
            .await
            .map(drop)
    }

    /// Uploads a blob, unless the repository has it.
    pub(super) async fn put_blob(self, repository: &str, blob: &Bytes) -> anyhow::Result<()> {
        let digest = oci::digest(blob);
        let path = format!("/v2/{repository}/blobs/{digest}");
        let known = self.send(Method::HEAD, &path, None).await?;
        if known.status == StatusCode::OK {
            return Ok(());
        }
        let path = format!("/v2/{repository}/blobs/uploads/");
        let upload = self
            .ask(Method::POST, &path, None, StatusCode::ACCEPTED)
            .await?;
        let location = upload
            .headers
            .get(LOCATION)
            .context("an upload without a location")?;
        let location: hyper::Uri = location.to_str()?.parse()?;
        let joint = if location.query().is_some() { '&' } else { '?' };
        let path = location
            .path_and_query()
            .context("an upload's location without a path")?;
        let path = format!("{path}{joint}digest={digest}");
        let body = Some(("application/octet-stream", blob.clone()));
        self.ask(Method::PUT, &path, body, StatusCode::CREATED)
            .await
            .map(drop)
    }

    /// Puts a manifest under a tag or its digest, and returns its digest.
    pub(super) async fn put_manifest(
        self,
        repository: &str,
        reference: &str,
        manifest: &Manifest,
    ) -> anyhow::Result<String> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let body = Some((manifest.media_type.as_str(), manifest.bytes.clone()));
        self.ask(Method::PUT, &path, body, StatusCode::CREATED)
            .await?;
        Ok(oci::digest(&manifest.bytes))
    }

    pub(super) async fn digest(self, repository: &str, tag: &str) -> anyhow::Result<String> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = self.ask(Method::HEAD, &path, None, StatusCode::OK).await?;
        let digest = answer
            .headers
            .get(CONTENT_DIGEST)
            .context("a manifest without a digest")?;
        Ok(digest.to_str()?.to_owned())
    }

    async fn ask(
        self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
        expected: StatusCode,
    ) -> anyhow::Result<Answer> {
        let answer = self.send(method.clone(), path, body).await?;
        if answer.status != expected {
            let said = String::from_utf8_lossy(&answer.body);
            bail!(
                "{method} {path}: the registry answered {}: {said}",
                answer.status
            );
        }
        Ok(answer)
    }

    async fn send(
        self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(&method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(ACCEPT, MANIFESTS);
        let mut bytes = Bytes::new();
        if let Some((media_type, content)) = body {
            request = request.header(CONTENT_TYPE, HeaderValue::from_str(media_type)?);
            bytes = content;
        }
        let request = request.body(Full::new(bytes))?;
        let answer = upstream::send(self.address, request).await;
        let (head, body) = answer
            .with_context(|| format!("{method} {path}"))?
            .into_parts();
        let body = body
            .collect()
            .await
            .with_context(|| format!("{method} {path}"))?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }
}
