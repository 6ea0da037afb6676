//! The content store: small documents, which are manifests and configurations, read whole and verified; and what is
//! taken out of it.

use containerd_client::services::v1::{DeleteContentRequest, ReadContentRequest};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256, Sha512};
use tonic::Code;

use crate::calls::Calls;
use crate::manifest::Descriptor;
use crate::runtime::RuntimeError;

/// Largest manifest or configuration that is read. Registries refuse manifests beyond 4 MiB.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Why a document could not be read.
#[derive(Debug)]
pub(crate) enum NoDocument {
    /// It is missing, too large or not such a document; in words for a person.
    Unusable(String),
    /// Its content does not match its digest; in words for a person.
    Corrupt(String),
    /// containerd did not answer.
    Runtime(RuntimeError),
}

impl From<RuntimeError> for NoDocument {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(error)
    }
}

/// Takes a blob out of containerd's database, so that a pull fetches it again. True if it was there.
pub(crate) async fn remove(
    calls: &Calls,
    operation: &'static str,
    digest: &str,
) -> Result<bool, RuntimeError> {
    let mut content = calls.content();
    let request = DeleteContentRequest {
        digest: digest.to_owned(),
    };
    let removed = calls.find(operation, content.delete(request)).await?;
    Ok(removed.is_some())
}

/// Reads the JSON document that the descriptor names; `what` is its name in messages.
pub(crate) async fn read_json<T: DeserializeOwned>(
    calls: &Calls,
    descriptor: &Descriptor,
    what: &str,
) -> Result<T, NoDocument> {
    let digest = &descriptor.digest;
    let unusable = |why: &str| NoDocument::Unusable(format!("the {what} {digest} {why}"));
    if descriptor.size > MAX_DOCUMENT_BYTES {
        return Err(unusable("is too large"));
    }
    let Some(bytes) = read(calls, digest).await? else {
        return Err(unusable("is missing"));
    };
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(unusable("is too large"));
    }
    if !matches(digest, &bytes) {
        return Err(NoDocument::Corrupt(format!(
            "the {what} {digest} is corrupt"
        )));
    }
    serde_json::from_slice(&bytes).map_err(|error| unusable(&format!("cannot be read: {error}")))
}

/// The blob's bytes, at most one more than [`MAX_DOCUMENT_BYTES`]; none if it is not there.
async fn read(calls: &Calls, digest: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
    let mut content = calls.content();
    let request = ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    };
    calls
        .within("reading from the content store", async move {
            let mut bytes = Vec::new();
            let outcome = async {
                let mut chunks = content.read(request).await?.into_inner();
                while let Some(chunk) = chunks.message().await? {
                    bytes.extend_from_slice(&chunk.data);
                    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
                        break;
                    }
                }
                Ok(())
            }
            .await;
            match outcome {
                Ok(()) => Ok(Some(bytes)),
                Err(status) if tonic::Status::code(&status) == Code::NotFound => Ok(None),
                Err(status) => Err(status),
            }
        })
        .await
}

/// Whether the bytes are those that the digest names.
fn matches(digest: &str, bytes: &[u8]) -> bool {
    Hash::of(digest).is_some_and(|mut hash| {
        hash.update(bytes);
        hash.is(digest)
    })
}

/// Compares bytes with the digest that names them, piece by piece.
pub(crate) enum Hash {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hash {
    /// For a digest of this kind, if it is known.
    pub(crate) fn of(digest: &str) -> Option<Self> {
        match digest.split_once(':')? {
            ("sha256", _) => Some(Self::Sha256(Sha256::new())),
            ("sha512", _) => Some(Self::Sha512(Sha512::new())),
            _ => None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Whether all bytes together are those that the digest names.
    pub(crate) fn is(self, digest: &str) -> bool {
        let (kind, hex) = match self {
            Self::Sha256(hash) => ("sha256", hex_of(&hash.finalize())),
            Self::Sha512(hash) => ("sha512", hex_of(&hash.finalize())),
        };
        digest.split_once(':') == Some((kind, hex.as_str()))
    }
}

/// `sha256:…` of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex_of(&Sha256::digest(bytes)))
}

pub(crate) fn hex_of(hash: &[u8]) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_its_bytes_and_no_others() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), empty);
        assert!(matches(empty, b""));
        assert!(!matches(empty, b"x"));
        assert!(!matches("e3b0", b""));
        assert!(!matches("md5:d41d8cd98f00b204e9800998ecf8427e", b""));
        let empty512 = hex_of(&Sha512::digest(b""));
        assert!(matches(&format!("sha512:{empty512}"), b""));
    }
}
