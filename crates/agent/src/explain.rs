//! `trylatest explain`: what would happen to an image or a pod now, and why, from the running agent.

mod page;

use std::path::Path;

use anyhow::{Context, bail};
use hyper::StatusCode;
use hyper::body::Bytes;
use trylatest_core::explain::Explanation;
use trylatest_core::image::ImageName;

use crate::agent::{OF_IMAGE, OF_POD};
use crate::args::{ExplainArgs, TextOrJson};
use crate::socket::{Asked, ask};

/// Prints what the agent says.
///
/// # Errors
/// No agent runs, it does not answer, or the name is neither an image's nor that of one of its pods.
pub fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let ExplainArgs {
        name,
        namespace,
        state_dir,
        output,
    } = args;
    let (explanation, note) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(explain(state_dir, name, namespace.as_deref()))?;
    if let Some(note) = note {
        eprintln!("trylatest: {note}");
    }
    let text = match output {
        TextOrJson::Json => serde_json::to_string_pretty(&explanation)? + "\n",
        TextOrJson::Text => page::page(&explanation),
    };
    crate::printed(text.as_bytes())
}

/// What the agent says, and what the user should know of how the name was read.
async fn explain(
    state_dir: &Path,
    name: &str,
    namespace: Option<&str>,
) -> anyhow::Result<(Explanation, Option<String>)> {
    let pod = pod(name).filter(|_| namespace.is_none());
    if let Some(pod) = pod {
        let answer = asked(state_dir, &format!("{OF_POD}{pod}")).await?;
        if answer.0 != StatusCode::NOT_FOUND {
            return Ok((read(answer)?, None));
        }
    }
    let image: ImageName = name.parse()?;
    let query = namespace.map(|namespace| format!("?namespace={namespace}"));
    let path = format!("{OF_IMAGE}{image}{}", query.unwrap_or_default());
    let explanation = read(asked(state_dir, &path).await?)?;
    let note = pod.map(|pod| {
        format!(
            "this node has no TryLatest pod {pod}, so this is about the image {image}; agents know the TryLatest pods of \
             their own node"
        )
    });
    Ok((explanation, note))
}

/// Whether this may be a pod's NAMESPACE/NAME: of one that has a tag or more parts, it is not.
fn pod(name: &str) -> Option<&str> {
    let (namespace, pod) = name.split_once('/')?;
    let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_pod = !namespace.is_empty()
        && namespace.chars().all(is_label)
        && !pod.is_empty()
        && pod.chars().all(|c| is_label(c) || c == '.');
    is_pod.then_some(name)
}

async fn asked(state_dir: &Path, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    match ask(state_dir, path).await? {
        Asked::Answered(status, body) => Ok((status, body)),
        Asked::NoAgent => bail!(
            "no agent runs here ({} is not answered), and only a running agent can say what it would do. Run this in the \
             agent's pod of the node: kubectl -n trylatest-system exec POD -- /trylatest explain ...; for an agent with \
             another folder, say --state-dir. What earlier tries have shown, `trylatest images` says without an agent",
            state_dir.join(crate::agent::SOCKET).display()
        ),
    }
}

fn read((status, body): (StatusCode, Bytes)) -> anyhow::Result<Explanation> {
    match status {
        StatusCode::OK => serde_json::from_slice(&body)
            .context("the agent's answer cannot be read; it may be of another version"),
        // An agent from before this command says nothing more.
        StatusCode::NOT_FOUND if body.is_empty() => {
            bail!("the agent that runs is older than this command")
        }
        _ => bail!("the agent says: {}", Asked::text(&body)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_two_parts_without_a_tag_may_be_a_pod() {
        for (name, is_pod) in [
            ("team-a/web-7f9c-x2", true),
            ("team/app.v1", true),
            ("team/app:latest", false),
            ("app", false),
            ("reg.example/app", false),
            ("reg:5000/app", false),
            ("team/sub/app", false),
            ("team/", false),
            ("/app", false),
            ("team/app@sha256:00", false),
        ] {
            assert_eq!(pod(name), is_pod.then_some(name), "{name}");
        }
    }

    #[tokio::test]
    async fn without_an_agent_it_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["team/app", "reg.example/app:latest"] {
            let error = explain(dir.path(), name, None).await.unwrap_err();
            let words = error.to_string();
            assert!(words.contains("no agent runs here"), "{words}");
            assert!(
                words.contains("kubectl -n trylatest-system exec"),
                "{words}"
            );
        }
    }

    #[test]
    fn what_an_agent_refuses_is_said_in_its_words() {
        let answer =
            |status, text: &'static str| read((status, Bytes::from_static(text.as_bytes())));
        let busy = answer(StatusCode::SERVICE_UNAVAILABLE, "try again\n").unwrap_err();
        assert_eq!(busy.to_string(), "the agent says: try again");
        let old = answer(StatusCode::NOT_FOUND, "").unwrap_err();
        assert!(old.to_string().contains("older"), "{old}");
        let other = answer(StatusCode::OK, "{}").unwrap_err();
        assert!(other.to_string().contains("another version"), "{other}");
    }
}
