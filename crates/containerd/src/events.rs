//! containerd's events; changes of image names among them.

use std::time::Duration;

use containerd_client::services::v1::{
    ImageCreate, ImageDelete, ImageUpdate, PublishRequest, SubscribeRequest,
};
use containerd_client::types::Envelope;
use futures::{StreamExt, TryStreamExt, future, stream};
use prost::Message;
use prost_types::Any;
use tonic::{Status, Streaming};

use crate::calls::{Calls, error};
use crate::runtime::{ImageChange, ImageEvent, ImageEvents, RuntimeError};

/// Published by us to learn that our subscription works; nobody else listens to it.
const HELLO_TOPIC: &str = "/trylatest/hello";

/// Pause between two hellos. The first is lost if it overtakes the subscription.
const HELLO_EVERY: Duration = Duration::from_millis(20);

/// See [`crate::ImageRuntime::image_events`].
pub(crate) async fn of_images(calls: &Calls) -> Result<ImageEvents, RuntimeError> {
    let operation = "subscribing to image events";
    let topics = ["namespace==k8s.io,topic~=\"^/images/\"".to_owned()];
    let envelopes = subscribe(calls, operation, topics).await?;
    Ok(follow(operation, envelopes))
}

/// Follows the events that one of these filters lets through.
///
/// containerd answers a subscription only with its first event, so a subscription that works looks like
/// one that has not arrived. Hence the hello: once it comes back, no later event is missed.
pub(crate) async fn subscribe(
    calls: &Calls,
    operation: &'static str,
    filters: impl IntoIterator<Item = String>,
) -> Result<Streaming<Envelope>, RuntimeError> {
    let mut events = calls.events();
    let hello = format!("topic==\"{HELLO_TOPIC}\"");
    let request = SubscribeRequest {
        filters: filters.into_iter().chain([hello]).collect(),
    };
    let subscribe = async { events.subscribe(request).await };
    let answer = calls
        .within(operation, async {
            tokio::select! {
                // Cancel-safe: only one subscription is made, and hellos are empty.
                answer = subscribe => answer,
                failed = say_hello(calls) => Err(failed),
            }
        })
        .await?;
    Ok(answer.into_inner())
}

/// Publishes hellos until dropped; returns why it cannot.
async fn say_hello(calls: &Calls) -> Status {
    let mut events = calls.events();
    loop {
        let hello = PublishRequest {
            topic: HELLO_TOPIC.to_owned(),
            event: Some(Any {
                type_url: "trylatest.dev/hello".to_owned(),
                value: Vec::new(),
            }),
        };
        if let Err(status) = events.publish(hello).await {
            return status;
        }
        tokio::time::sleep(HELLO_EVERY).await;
    }
}

fn follow(operation: &'static str, envelopes: Streaming<Envelope>) -> ImageEvents {
    envelopes
        .map_err(move |status| error(operation, &status))
        .try_filter_map(|envelope| async move { Ok(read(&envelope)) })
        .chain(stream::once(async { Err(RuntimeError::EventsEnded) }))
        .scan(false, |over, item| {
            let was_over = std::mem::replace(over, item.is_err());
            future::ready((!was_over).then_some(item))
        })
        .boxed()
}

/// The change of a name, if it is one.
fn read(envelope: &Envelope) -> Option<ImageEvent> {
    let value = envelope.event.as_ref()?.value.as_slice();
    let (change, name) = match envelope.topic.as_str() {
        "/images/create" => (ImageChange::Created, ImageCreate::decode(value).ok()?.name),
        "/images/update" => (ImageChange::Updated, ImageUpdate::decode(value).ok()?.name),
        "/images/delete" => (ImageChange::Deleted, ImageDelete::decode(value).ok()?.name),
        _ => return None,
    };
    Some(ImageEvent { name, change })
}
