//! Blobs on their way into the content store, and the lease that holds them until a name does.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use containerd_client::services::v1::{
    CreateRequest as CreateLease, DeleteRequest as DeleteLease, ReadContentRequest, WriteAction,
    WriteContentRequest,
};
use futures::stream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use crate::containerd::Containerd;
use crate::content;
use crate::program::Program;
use crate::runtime::RuntimeError;

/// For writing the layer, some 10 MiB. A disk that takes longer has more urgent problems.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// A blob to be written.
pub(super) struct Blob<P> {
    pub(super) digest: String,
    pub(super) bytes: u64,
    pub(super) labels: HashMap<String, String>,
    pub(super) pieces: P,
}

/// Reads the layer's last byte: the database may name a file that is gone or cut off.
pub(super) async fn layer_is_there(
    node: &Containerd,
    program: &Program,
) -> Result<bool, RuntimeError> {
    let mut content = node.calls.content();
    let last = program.layer_bytes().saturating_sub(1);
    let request = ReadContentRequest {
        digest: program.layer().to_owned(),
        offset: i64::try_from(last).unwrap_or(i64::MAX),
        size: 1,
    };
    node.calls
        .within("reading from the content store", async {
            let read = async {
                let mut chunks = content.read(request).await?.into_inner();
                let chunk = chunks.message().await?;
                Ok(chunk.is_some_and(|chunk| chunk.data.len() == 1))
            };
            match read.await {
                Ok(there) => Ok(there),
                Err(status) if is_missing(&status) => Ok(false),
                Err(status) => Err(status),
            }
        })
        .await
}

/// Not in the database; its file is gone, or shorter than it should be.
fn is_missing(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::OutOfRange)
}

pub(super) async fn write_layer(
    node: &Containerd,
    program: &Program,
    lease: &Lease,
) -> Result<(), RuntimeError> {
    if layer_is_there(node, program).await? {
        // Under the lease as well: otherwise it would go with an image that is removed now.
        return write(node, lease, layer(program)).await;
    }
    // containerd writes nothing that its database already names.
    let operation = "removing a layer that is gone";
    content::remove(&node.calls, operation, program.layer()).await?;
    write(node, lease, layer(program)).await
}

fn layer(program: &Program) -> Blob<impl Iterator<Item = io::Result<Vec<u8>>> + Send + 'static> {
    Blob {
        digest: program.layer().to_owned(),
        bytes: program.layer_bytes(),
        labels: HashMap::new(),
        pieces: program.pieces(),
    }
}

/// Writes a blob into the content store, unless it is there.
pub(super) async fn write<P>(
    node: &Containerd,
    lease: &Lease,
    blob: Blob<P>,
) -> Result<(), RuntimeError>
where
    P: Iterator<Item = io::Result<Vec<u8>>> + Send + 'static,
{
    let mut content = node.calls.content();
    let mut request = Request::new(stream::iter(requests(blob)));
    request
        .metadata_mut()
        .insert("containerd-lease", lease.clone());
    let write = async {
        let mut answers = content.write(request).await?.into_inner();
        let mut committed = false;
        while let Some(answer) = answers.message().await? {
            committed = answer.action() == WriteAction::Commit;
        }
        if committed {
            Ok(())
        } else {
            Err(Status::aborted("the blob was not written completely"))
        }
    };
    let write = async {
        match write.await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            written => written,
        }
    };
    let operation = "writing into the content store";
    node.calls
        .within_time(WRITE_DEADLINE, operation, write)
        .await
}

/// The messages for a blob: its pieces, then the end. If a piece cannot be read, the end is not sent,
/// and containerd does not keep the blob.
fn requests<P>(blob: Blob<P>) -> impl Iterator<Item = WriteContentRequest> + Send + 'static
where
    P: Iterator<Item = io::Result<Vec<u8>>> + Send + 'static,
{
    let Blob {
        digest,
        bytes,
        labels,
        pieces,
    } = blob;
    let template = WriteContentRequest {
        action: WriteAction::Write.into(),
        r#ref: format!("trylatest-{digest}"),
        total: i64::try_from(bytes).unwrap_or(i64::MAX),
        expected: digest,
        ..WriteContentRequest::default()
    };
    let commit = WriteContentRequest {
        action: WriteAction::Commit.into(),
        offset: template.total,
        labels,
        ..template.clone()
    };
    let mut offset = 0;
    pieces
        .map(Some)
        .chain(std::iter::once(None))
        .map_while(move |piece| match piece {
            Some(Ok(data)) => {
                let at = offset;
                offset += i64::try_from(data.len()).unwrap_or(0);
                Some(WriteContentRequest {
                    offset: at,
                    data,
                    ..template.clone()
                })
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "a piece of the program could not be read");
                None
            }
            None => Some(commit.clone()),
        })
}

/// Says in a call that a lease holds what it writes.
pub(super) type Lease = MetadataValue<Ascii>;

/// The lease has the alias's name, so that one that a killed agent leaves behind is found again.
pub(super) fn lease(alias: &str) -> Result<Lease, RuntimeError> {
    Lease::try_from(alias).map_err(|_| RuntimeError::BadAlias {
        alias: alias.to_owned(),
    })
}

/// Does the work while a lease holds what it writes, until the alias does.
pub(super) async fn leased<T>(
    node: &Containerd,
    alias: &str,
    work: impl Future<Output = Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    unlease(node, alias).await?;
    let mut leases = node.calls.leases();
    let request = CreateLease {
        id: alias.to_owned(),
        labels: HashMap::new(),
    };
    let create = leases.create(request);
    node.calls.call("making a lease", create).await?;
    let done = work.await;
    if let Err(error) = unlease(node, alias).await {
        // The next one replaces it.
        tracing::debug!(%error, "removing a lease has failed; the next one replaces it");
    }
    done
}

async fn unlease(node: &Containerd, alias: &str) -> Result<(), RuntimeError> {
    let mut leases = node.calls.leases();
    let request = DeleteLease {
        id: alias.to_owned(),
        sync: false,
    };
    let delete = leases.delete(request);
    let ended = node.calls.find("ending a lease", delete).await;
    ended.map(|_was_there| ())
}
