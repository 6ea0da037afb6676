//! What the registry holds, by the back door.

use super::*;

#[tokio::test]
async fn tags_move_while_the_port_is_closed() {
    let fixture = Fixture::start().await;
    let registry = &fixture.registry;
    let first = oci::digest(&fixture.image.manifest.bytes);
    assert_eq!(
        registry.digest_of(REPOSITORY, "latest").await.unwrap(),
        first
    );

    registry.fault(Fault::Closed).await.unwrap();
    let next = content(10);
    let second = registry.push(&next, REPOSITORY, "latest").await.unwrap();
    assert_ne!(second, first);
    assert_eq!(
        registry.digest_of(REPOSITORY, "latest").await.unwrap(),
        second
    );
    registry.digest_of(REPOSITORY, "other").await.unwrap_err();

    registry.heal().await.unwrap();
    assert_eq!(
        fixture.client().await.get(&manifest_path()).await.body,
        next.manifest.bytes
    );
}

#[tokio::test]
async fn a_manifest_without_its_parts_is_refused_and_said_so() {
    let fixture = Fixture::start().await;
    let manifest = content(11).manifest;
    let refused = fixture
        .registry
        .put_manifest(&manifest, REPOSITORY, "bad")
        .await;
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
}

#[tokio::test]
async fn a_registry_that_does_not_start_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let failed = Registry::start(
        Path::new("/bin/false"),
        dir.path(),
        &dir.path().join("log"),
        0,
    )
    .await;
    let error = format!("{:#}", failed.err().expect("it cannot start"));
    assert!(error.contains("registry ended: exit status 1"), "{error}");
}
