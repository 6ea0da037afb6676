//! Every fault, as a plain HTTP client before a real registry sees it.

mod answers;
mod bodies;
mod connections;
mod storage;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{HeaderMap, Response};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use trylatest_bootstrap::{Tools, oci};

use super::*;

/// What must happen happens within this time, also on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// How long we watch that something does not happen. An answer over loopback takes a hundredth.
const WHILE: Duration = Duration::from_millis(300);

const REPOSITORY: &str = "my/app";

/// A registry that holds one image.
struct Fixture {
    registry: Registry,
    image: Content,
    _dir: TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let program = Tools::here().unwrap().docker_registry();
        assert!(
            program.exists(),
            "docker-registry is missing: `cargo run -p trylatest-bootstrap -- tools` brings it in"
        );
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let registry = Registry::start(&program, dir.path(), &log, 0)
            .await
            .unwrap();
        let image = content(200_000);
        registry.push(&image, REPOSITORY, "latest").await.unwrap();
        Self {
            registry,
            image,
            _dir: dir,
        }
    }

    fn layer(&self) -> &Bytes {
        self.image.blobs.last().unwrap()
    }

    fn layer_path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", oci::digest(self.layer()))
    }

    async fn client(&self) -> Client {
        Client::connect(self.registry.address()).await.unwrap()
    }
}

fn manifest_path() -> String {
    format!("/v2/{REPOSITORY}/manifests/latest")
}

/// An image that a registry takes: nothing in it could run.
fn content(layer_bytes: usize) -> Content {
    let config = Bytes::from_static(b"{\"architecture\":\"amd64\",\"os\":\"linux\"}");
    let layer: Bytes = (0..=250).cycle().take(layer_bytes).collect();
    let part = |media_type: &str, blob: &Bytes| json!({"mediaType": media_type, "digest": oci::digest(blob), "size": blob.len()});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": part("application/vnd.oci.image.config.v1+json", &config),
        "layers": [part("application/vnd.oci.image.layer.v1.tar", &layer)],
    });
    Content {
        manifest: Manifest {
            bytes: manifest.to_string().into(),
            media_type: media_type.to_owned(),
        },
        blobs: vec![config, layer],
    }
}

/// One keep-alive connection.
struct Client {
    address: SocketAddr,
    sender: http1::SendRequest<Empty<Bytes>>,
    _connection: JoinSet<()>,
}

/// A whole answer.
#[derive(Debug)]
struct Whole {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Whole {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

impl Client {
    async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut task = JoinSet::new();
        task.spawn(async {
            // Its error also reaches who waits for the answer.
            let _ = connection.await;
        });
        Ok(Self {
            address,
            sender,
            _connection: task,
        })
    }

    /// The head of the answer.
    async fn head(&mut self, method: &str, path: &str) -> hyper::Result<Response<Incoming>> {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("accept", "application/vnd.oci.image.manifest.v1+json")
            .body(Empty::new())
            .unwrap();
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    async fn try_get(&mut self, path: &str) -> hyper::Result<Whole> {
        whole(self.head("GET", path).await?).await
    }

    /// The whole answer, which must come soon.
    async fn get(&mut self, path: &str) -> Whole {
        soon(self.try_get(path)).await.unwrap()
    }
}

async fn whole(answer: Response<Incoming>) -> hyper::Result<Whole> {
    let (head, body) = answer.into_parts();
    Ok(Whole {
        status: head.status.as_u16(),
        headers: head.headers,
        body: body.collect().await?.to_bytes(),
    })
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("happens soon")
}

/// Asserts that the future does not end; it can be awaited further if it was passed by `&mut`.
async fn hangs<T>(future: impl Future<Output = T>) {
    assert!(
        timeout(WHILE, future).await.is_err(),
        "it must hang, but ended"
    );
}
