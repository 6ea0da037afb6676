//! Faults that are an answer, to which requests they come, and the counts.

use super::*;

/// What an answer must look like: status, a header with its value, a part of the body.
type Expected = (u16, (&'static str, &'static str), &'static str);

fn cases() -> Vec<(Fault, Expected)> {
    let json = ("content-type", "application/json");
    let retry_after = Duration::from_secs(7);
    vec![
        (Fault::InternalError, (500, json, "UNKNOWN")),
        (Fault::Unavailable, (503, json, "UNAVAILABLE")),
        (
            Fault::RateLimited { retry_after },
            (429, ("retry-after", "7"), "TOOMANYREQUESTS"),
        ),
        (Fault::Forbidden, (403, json, "DENIED")),
        (
            Fault::NotFound,
            (
                404,
                json,
                r#"{"code":"MANIFEST_UNKNOWN","detail":{"Tag":"latest"}"#,
            ),
        ),
        (
            Fault::Unauthorized(Challenge::Basic),
            (
                401,
                ("www-authenticate", "Basic realm=\"registry\""),
                "UNAUTHORIZED",
            ),
        ),
        (
            Fault::HtmlPage,
            (200, ("content-type", "text/html; charset=utf-8"), "<html>"),
        ),
    ]
}

#[tokio::test]
async fn a_changed_fault_meets_the_next_request_of_an_open_connection() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    for (fault, (status, (header, value), body)) in cases() {
        let name = fault.to_string();
        fixture.registry.fault(fault).await.unwrap();
        let answer = client.get(&manifest_path()).await;
        assert_eq!(answer.status, status, "{name}");
        assert_eq!(answer.header(header), value, "{name}");
        assert!(answer.text().contains(body), "{name}: {}", answer.text());
        let head = soon(client.head("HEAD", &manifest_path())).await.unwrap();
        assert_eq!(head.status().as_u16(), status, "{name}");

        fixture.registry.heal().await.unwrap();
        let answer = client.get(&manifest_path()).await;
        assert_eq!(answer.status, 200, "after {name}");
        assert_eq!(answer.body, fixture.image.manifest.bytes, "after {name}");
    }
}

#[tokio::test]
async fn not_found_is_for_content_and_says_which() {
    let fixture = Fixture::start().await;
    fixture.registry.fault(Fault::NotFound).await.unwrap();
    let mut client = fixture.client().await;
    assert_eq!(client.get("/v2/").await.status, 200);
    let blob = client.get(&fixture.layer_path()).await;
    assert_eq!(blob.status, 404);
    assert!(blob.text().contains("BLOB_UNKNOWN"), "{}", blob.text());
}

#[tokio::test]
async fn a_bearer_challenge_points_to_a_token_endpoint_that_answers_as_told() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let host = fixture.registry.host();
    for token in [401, 403, 503, 200] {
        let challenge = Challenge::Bearer { token };
        fixture
            .registry
            .fault_on(REPOSITORY, Fault::Unauthorized(challenge))
            .unwrap();
        let answer = client.get(&manifest_path()).await;
        assert_eq!(answer.status, 401);
        let challenge = answer.header("www-authenticate");
        let expected = format!(
            "Bearer realm=\"http://{host}/token\",service=\"registry\",scope=\"repository:my/app:pull\""
        );
        assert!(challenge.starts_with(&expected), "{challenge}");
        let token_path = "/token?service=registry&scope=repository%3Amy%2Fapp%3Apull";
        let answer = client.get(token_path).await;
        assert_eq!(answer.status, token);
        assert_eq!(
            answer.text().contains("access_token"),
            token == 200,
            "{}",
            answer.text()
        );
    }
    assert_eq!(fixture.registry.requests().count(RequestKind::Token), 4);
}

#[tokio::test]
async fn a_counted_fault_meets_so_many_requests_and_no_more() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    fixture
        .registry
        .fault(Fault::NotFound.times(2))
        .await
        .unwrap();
    let mut statuses = Vec::new();
    for path in ["/v2/", &manifest_path(), &manifest_path(), &manifest_path()] {
        statuses.push(client.get(path).await.status);
    }
    // The ping is none that this fault can meet.
    assert_eq!(statuses, [200, 404, 404, 200]);
}

#[tokio::test]
async fn a_fault_can_be_for_one_kind_of_request() {
    let fixture = Fixture::start().await;
    let mut client = fixture.client().await;
    let rule = Fault::Unavailable.only(RequestKind::GetBlob).times(1);
    fixture.registry.fault_on(REPOSITORY, rule).unwrap();
    assert_eq!(client.get(&manifest_path()).await.status, 200);
    assert_eq!(client.get(&fixture.layer_path()).await.status, 503);
    assert_eq!(client.get(&fixture.layer_path()).await.status, 200);

    let challenge = Fault::Unauthorized(Challenge::Bearer { token: 403 });
    let rule = challenge.only(RequestKind::GetBlob);
    fixture.registry.fault_on(REPOSITORY, rule).unwrap();
    assert_eq!(client.get(&manifest_path()).await.status, 200);
    assert_eq!(client.get(&fixture.layer_path()).await.status, 401);
    let token = "/token?scope=repository%3Amy%2Fapp%3Apull";
    assert_eq!(client.get(token).await.status, 403);
}

#[tokio::test]
async fn a_fault_of_one_repository_leaves_the_others_alone() {
    let fixture = Fixture::start().await;
    let registry = &fixture.registry;
    registry
        .push(&fixture.image, "other", "latest")
        .await
        .unwrap();
    let mut client = fixture.client().await;
    let other = "/v2/other/manifests/latest";

    registry.fault_on(REPOSITORY, Fault::Forbidden).unwrap();
    assert_eq!(client.get(&manifest_path()).await.status, 403);
    assert_eq!(client.get(other).await.status, 200);

    registry.fault(Fault::InternalError).await.unwrap();
    assert_eq!(client.get(&manifest_path()).await.status, 403);
    assert_eq!(client.get(other).await.status, 500);

    registry.heal_on(REPOSITORY);
    assert_eq!(client.get(&manifest_path()).await.status, 500);

    registry.fault_on(REPOSITORY, Fault::Forbidden).unwrap();
    registry.heal().await.unwrap();
    assert_eq!(client.get(&manifest_path()).await.status, 403);
    assert_eq!(client.get(other).await.status, 200);
}

#[tokio::test]
async fn faults_of_the_port_take_neither_a_repository_nor_a_count() {
    let fixture = Fixture::start().await;
    for fault in [Fault::Closed, Fault::Blackhole] {
        fixture
            .registry
            .fault_on(REPOSITORY, fault.clone())
            .unwrap_err();
        fixture
            .registry
            .fault(fault.clone().times(1))
            .await
            .unwrap_err();
        fixture
            .registry
            .fault(fault.only(RequestKind::Ping))
            .await
            .unwrap_err();
    }
    assert_eq!(fixture.client().await.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn requests_are_counted_by_repository_and_kind_whatever_comes_of_them() {
    let fixture = Fixture::start().await;
    let registry = &fixture.registry;
    assert_eq!(registry.requests().total(), 0, "pushes go by the back door");

    let mut client = fixture.client().await;
    client.get("/v2/").await;
    soon(client.head("HEAD", &manifest_path())).await.unwrap();
    client.get(&manifest_path()).await;
    registry.fault(Fault::InternalError).await.unwrap();
    client.get(&manifest_path()).await;
    registry.heal().await.unwrap();
    client.get(&fixture.layer_path()).await;
    client.get("/v2/_catalog").await;
    client.get("/token").await;
    let requests = registry.requests();
    assert_eq!(
        requests.to_string(),
        "1 ping, 1 token, 1 other, 1 head-manifest of my/app, 2 get-manifest of my/app, \
         1 get-blob of my/app"
    );
    assert_eq!((requests.total(), requests.total_on(REPOSITORY)), (7, 4));
}

#[tokio::test]
async fn a_test_can_wait_for_a_request() {
    let fixture = Fixture::start().await;
    let asked = |requests: &Requests| requests.count(RequestKind::GetBlob) > 0;
    let waiting = fixture.registry.wait_until(asked);
    let mut waiting = Box::pin(waiting);
    let mut client = fixture.client().await;
    client.get("/v2/").await;
    hangs(&mut waiting).await;
    client.get(&fixture.layer_path()).await;
    soon(waiting).await;
    soon(
        fixture
            .registry
            .wait_until(|requests| requests.total() == 2),
    )
    .await;
}
