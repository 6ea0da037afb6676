//! Faults of the port and of connections.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::*;

#[tokio::test]
async fn a_closed_port_refuses_and_its_connections_are_gone() {
    let fixture = Fixture::start().await;
    let address = fixture.registry.address();
    let mut open = fixture.client().await;
    assert_eq!(open.get("/v2/").await.status, 200);

    fixture.registry.fault(Fault::Closed).await.unwrap();
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    soon(open.try_get("/v2/")).await.unwrap_err();

    fixture.registry.heal().await.unwrap();
    assert_eq!(fixture.registry.address(), address);
    assert_eq!(fixture.client().await.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn a_closed_port_cuts_hanging_requests() {
    let fixture = Fixture::start().await;
    fixture.registry.fault(Fault::NeverAnswers).await.unwrap();
    let mut client = fixture.client().await;
    let mut hanging = Box::pin(client.try_get("/v2/"));
    hangs(&mut hanging).await;
    fixture.registry.fault(Fault::Closed).await.unwrap();
    soon(hanging).await.unwrap_err();
}

#[tokio::test]
async fn a_blackhole_answers_no_syn_and_freezes_what_is_open() {
    let fixture = Fixture::start().await;
    let mut open = fixture.client().await;
    assert_eq!(open.get("/v2/").await.status, 200);

    fixture.registry.fault(Fault::Blackhole).await.unwrap();
    let mut connecting = Box::pin(TcpStream::connect(fixture.registry.address()));
    hangs(&mut connecting).await;
    let mut asking = Box::pin(open.try_get("/v2/"));
    hangs(&mut asking).await;

    fixture.registry.heal().await.unwrap();
    assert_eq!(soon(asking).await.unwrap().status, 200);
    // The kernel asked again: a second after its first SYN.
    soon(connecting).await.unwrap();
    assert_eq!(fixture.client().await.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn the_port_goes_from_any_state_to_any_other() {
    let fixture = Fixture::start().await;
    let address = fixture.registry.address();
    let steps = [
        Fault::Blackhole,
        Fault::Closed,
        Fault::Closed,
        Fault::Blackhole,
        Fault::Blackhole,
    ];
    for fault in steps {
        let name = fault.to_string();
        let closed = fault == Fault::Closed;
        fixture.registry.fault(fault).await.unwrap();
        let connected = timeout(WHILE, TcpStream::connect(address)).await;
        assert_eq!(matches!(connected, Ok(Err(_))), closed, "{name}");
        assert_eq!(connected.is_err(), !closed, "{name}");
    }
    fixture.registry.fault(Fault::Unavailable).await.unwrap();
    assert_eq!(fixture.client().await.get("/v2/").await.status, 503);
}

#[tokio::test]
async fn a_registry_that_never_answers_answers_the_next_request_once_healed() {
    let fixture = Fixture::start().await;
    fixture.registry.fault(Fault::NeverAnswers).await.unwrap();
    let mut stuck = fixture.client().await;
    let path = manifest_path();
    let mut unanswered = Box::pin(stuck.try_get(&path));
    hangs(&mut unanswered).await;
    assert_eq!(
        fixture.registry.requests().to_string(),
        "1 get-manifest of my/app"
    );

    fixture.registry.heal().await.unwrap();
    hangs(&mut unanswered).await;
    assert_eq!(fixture.client().await.get(&path).await.status, 200);
}

#[tokio::test]
async fn a_reset_is_a_reset_on_the_wire() {
    let fixture = Fixture::start().await;
    fixture.registry.fault(Fault::Reset).await.unwrap();
    let mut stream = TcpStream::connect(fixture.registry.address())
        .await
        .unwrap();
    stream
        .write_all(b"GET /v2/ HTTP/1.1\r\nHost: registry\r\n\r\n")
        .await
        .unwrap();
    let error = soon(stream.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    fixture.registry.heal().await.unwrap();
    assert_eq!(fixture.client().await.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn latency_delays_each_answer_until_healed() {
    let fixture = Fixture::start().await;
    let latency = Duration::from_millis(200);
    fixture
        .registry
        .fault(Fault::Latency(latency))
        .await
        .unwrap();
    let mut client = fixture.client().await;
    for _ in 0..2 {
        let start = Instant::now();
        assert_eq!(client.get(&manifest_path()).await.status, 200);
        assert!(start.elapsed() >= latency, "{:?}", start.elapsed());
    }
    fixture
        .registry
        .fault(Fault::Latency(SOON * 2))
        .await
        .unwrap();
    let path = manifest_path();
    let mut delayed = Box::pin(client.try_get(&path));
    hangs(&mut delayed).await;
    fixture.registry.heal().await.unwrap();
    assert_eq!(soon(delayed).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_dropped_registry_leaves_nothing_listening() {
    let fixture = Fixture::start().await;
    let other = fixture.registry.add_host().unwrap().address();
    let addresses = [fixture.registry.address(), other];
    fixture.registry.stop().await.unwrap();
    // The drop makes the proxies' tasks end with the next turn of the runtime.
    soon(async {
        for address in addresses {
            while TcpStream::connect(address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn hosts_fail_independently() {
    let fixture = Fixture::start().await;
    let first = fixture.registry.first_host();
    let other = fixture.registry.add_host().unwrap();
    assert_ne!(first.host(), other.host());
    first.fault(Fault::Closed).await.unwrap();
    other.fault(Fault::Unavailable).await.unwrap();
    TcpStream::connect(first.address()).await.unwrap_err();
    let mut client = Client::connect(other.address()).await.unwrap();
    assert_eq!(client.get(&manifest_path()).await.status, 503);

    other.heal().await.unwrap();
    let answer = client.get(&manifest_path()).await;
    assert_eq!(answer.body, fixture.image.manifest.bytes);
    assert_eq!(other.requests().count(RequestKind::GetManifest), 2);
    assert_eq!(first.requests().total(), 0);
}

#[tokio::test]
async fn no_other_host_gets_the_port_of_one_that_nobody_uses() {
    let fixture = Fixture::start().await;
    let address = fixture.registry.add_host().unwrap().address();
    FaultProxy::start(address.port(), address).err().unwrap();
    assert!(TcpStream::connect(address).await.is_ok());
}
