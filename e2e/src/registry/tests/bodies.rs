//! Faults of what is downloaded.

use std::error::Error as _;

use super::*;

/// Reads so many bytes, and asserts that then nothing more comes.
async fn read_until_it_stalls(body: &mut Incoming, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        bytes.extend_from_slice(&next(body).await);
    }
    hangs(body.frame()).await;
    bytes
}

async fn next(body: &mut Incoming) -> Bytes {
    let frame = soon(body.frame()).await.expect("it goes on");
    frame.unwrap().into_data().unwrap()
}

async fn download(fixture: &Fixture, client: &mut Client) -> Incoming {
    let answer = soon(client.head("GET", &fixture.layer_path()))
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let length = answer.headers().get("content-length").unwrap();
    assert_eq!(length.to_str().unwrap(), fixture.layer().len().to_string());
    answer.into_body()
}

#[tokio::test]
async fn what_is_pushed_comes_through_the_proxy() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let manifest = client.get(&manifest_path()).await;
    assert_eq!(manifest.body, fixture.image.manifest.bytes);
    assert_eq!(
        manifest.header("content-type"),
        fixture.image.manifest.media_type
    );
    assert_eq!(
        client.get(&fixture.layer_path()).await.body,
        fixture.layer()
    );
}

#[tokio::test]
async fn a_stalled_blob_stops_after_so_many_bytes_and_stays_so() {
    let fixture = Fixture::start().await;
    fixture
        .registry
        .fault(Fault::StalledBlob {
            after_bytes: 70_000,
        })
        .await
        .unwrap();
    let mut client = fixture.client().await;
    let mut body = download(&fixture, &mut client).await;
    assert_eq!(
        read_until_it_stalls(&mut body, 70_000).await,
        fixture.layer()[..70_000]
    );

    // The configuration is shorter, and comes whole; so does the manifest.
    let config = fixture.image.blobs.first().unwrap();
    let path = format!("/v2/{REPOSITORY}/blobs/{}", oci::digest(config));
    let mut other = fixture.client().await;
    assert_eq!(other.get(&path).await.body, config);
    assert_eq!(other.get(&manifest_path()).await.status, 200);

    fixture.registry.heal().await.unwrap();
    hangs(body.frame()).await;
    assert_eq!(other.get(&fixture.layer_path()).await.body, fixture.layer());
}

#[tokio::test]
async fn a_stall_that_is_to_come_once_is_not_used_up_by_small_blobs() {
    let fixture = Fixture::start().await;
    let fault = Fault::StalledBlob { after_bytes: 1000 };
    fixture.registry.fault(fault.times(1)).await.unwrap();
    let config = fixture.image.blobs.first().unwrap();
    let path = format!("/v2/{REPOSITORY}/blobs/{}", oci::digest(config));
    let mut client = fixture.client().await;
    assert_eq!(client.get(&path).await.body, config);
    let mut body = download(&fixture, &mut client).await;
    assert_eq!(
        read_until_it_stalls(&mut body, 1000).await,
        fixture.layer()[..1000]
    );
    assert_eq!(
        fixture.client().await.get(&fixture.layer_path()).await.body,
        fixture.layer()
    );
}

#[tokio::test]
async fn a_slow_blob_crawls_and_runs_on_when_healed() {
    let fixture = Fixture::start().await;
    fixture
        .registry
        .fault(Fault::SlowBlob {
            bytes_per_second: 10_000,
        })
        .await
        .unwrap();
    let mut client = fixture.client().await;
    let mut body = download(&fixture, &mut client).await;
    let mut bytes = next(&mut body).await.to_vec();
    let crawl = async {
        loop {
            bytes.extend_from_slice(&next(&mut body).await);
        }
    };
    hangs(crawl).await;
    // 3,000 bytes by the pace; the whole would take 20 s.
    assert!(bytes.len() < 10_000, "{}", bytes.len());

    fixture
        .registry
        .fault_on(
            "other",
            Fault::SlowBlob {
                bytes_per_second: 1,
            },
        )
        .unwrap();
    fixture.registry.heal_on("other");
    let still = next(&mut body).await;
    assert!(
        still.len() < 10_000,
        "another repository's fault changes nothing: {}",
        still.len()
    );
    bytes.extend_from_slice(&still);

    fixture.registry.heal().await.unwrap();
    let rest = soon(body.collect()).await.unwrap().to_bytes();
    bytes.extend_from_slice(&rest);
    assert_eq!(bytes, *fixture.layer());
}

#[tokio::test]
async fn a_cut_blob_breaks_off_half_way() {
    let fixture = Fixture::start().await;
    fixture.registry.fault(Fault::CutBlob).await.unwrap();
    let mut client = fixture.client().await;
    let mut body = download(&fixture, &mut client).await;
    let mut bytes = Vec::new();
    let error = soon(async {
        loop {
            match body.frame().await {
                Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(error)) => return error,
                None => panic!("it came to its end"),
            }
        }
    })
    .await;
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>());
    assert_eq!(
        cause.map(io::Error::kind),
        Some(io::ErrorKind::UnexpectedEof),
        "{error:?}"
    );
    assert_eq!(bytes, fixture.layer()[..fixture.layer().len() / 2]);

    fixture.registry.heal().await.unwrap();
    assert_eq!(
        fixture.client().await.get(&fixture.layer_path()).await.body,
        fixture.layer()
    );
}

#[tokio::test]
async fn corrupt_content_has_the_right_length_and_the_wrong_hash() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;

    fixture.registry.fault(Fault::CorruptBlob).await.unwrap();
    let blob = client.get(&fixture.layer_path()).await;
    assert_eq!(blob.body.len(), fixture.layer().len());
    assert_ne!(oci::digest(&blob.body), oci::digest(fixture.layer()));
    assert_eq!(
        client.get(&manifest_path()).await.body,
        fixture.image.manifest.bytes
    );

    fixture
        .registry
        .fault(Fault::CorruptManifest)
        .await
        .unwrap();
    let manifest = client.get(&manifest_path()).await;
    let digest = oci::digest(&fixture.image.manifest.bytes);
    assert_eq!(manifest.header("docker-content-digest"), digest);
    assert_eq!(manifest.body.len(), fixture.image.manifest.bytes.len());
    assert_ne!(oci::digest(&manifest.body), digest);
    assert_eq!(
        client.get(&fixture.layer_path()).await.body,
        fixture.layer()
    );

    fixture.registry.heal().await.unwrap();
    assert_eq!(
        client.get(&manifest_path()).await.body,
        fixture.image.manifest.bytes
    );
}
