//! What commands that pull by hand leave behind: the running agent hears of it, or, where none runs, it is written to
//! the index for the next one.

use std::path::Path;

use anyhow::bail;
use hyper::{Method, StatusCode};
use trylatest_core::record::Try;
use trylatest_index::Index;

use crate::agent::{BY_HAND, INDEX, SOCKET};
use crate::socket::{self, Asked};

/// Has this node remember a pull by hand. If it does not, that is said on stderr: the pull is what it is.
pub(crate) async fn remember(state_dir: &Path, tried: Try) {
    let tried = Try {
        by_hand: true,
        ..tried
    };
    if let Err(error) = report(state_dir, &tried).await {
        eprintln!("trylatest: {error:#}");
    }
}

async fn report(state_dir: &Path, tried: &Try) -> anyhow::Result<()> {
    let agent = match socket::connect(state_dir).await {
        Ok(Some(agent)) => agent,
        Ok(None) => {
            let written = write(state_dir, tried);
            return written.map_err(|error| error.context("this pull is not remembered"));
        }
        Err(error) => return Err(unheard(error)),
    };
    // Why the registry has given nothing, the agent's own tries find out.
    if tried.confirmation().is_none() {
        return Ok(());
    }
    let report = serde_json::to_vec(tried)?;
    let answer = agent.request(Method::POST, BY_HAND, report.into()).await;
    answer.and_then(heard).map_err(unheard)
}

fn heard((status, body): (StatusCode, hyper::body::Bytes)) -> anyhow::Result<()> {
    match status {
        StatusCode::NO_CONTENT => Ok(()),
        // An agent from before such reports says nothing more.
        StatusCode::NOT_FOUND if body.is_empty() => bail!("it is older than this command"),
        _ => bail!("{}", Asked::text(&body)),
    }
}

fn unheard(error: anyhow::Error) -> anyhow::Error {
    error.context(
        "the running agent may not know of this pull. Until its own next try of the image, it may refuse the copy to \
         pods with a max-age in an outage; repeat the command if that matters",
    )
}

/// Writes to an index that nobody has open. One that cannot be read is left as it is: the agent moves it aside, and fills
/// the next one from what the node holds.
fn write(state_dir: &Path, tried: &Try) -> anyhow::Result<()> {
    let path = state_dir.join(INDEX);
    if path.exists() {
        Index::open_read_only(&path)?;
    } else if state_dir.join(SOCKET).exists() {
        bail!("the last agent here was killed, and it ran without an index");
    }
    std::fs::create_dir_all(state_dir)?;
    let opened = Index::open(&path, tried.ended())?;
    Ok(opened.index.record(tried)?)
}

#[cfg(test)]
mod tests;
