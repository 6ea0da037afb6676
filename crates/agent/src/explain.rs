//! `trylatest explain`: what would happen to an image or a pod now, and why, from the running agent.

mod page;

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use hyper::StatusCode;
use hyper::body::Bytes;
use trylatest_core::explain::{Explanation, ImageNow};
use trylatest_core::image::ImageName;
use trylatest_core::namespace::NamespaceName;

use crate::agent::{OF_IMAGE, OF_POD};
use crate::args::{ExplainArgs, TextOrJson};
use crate::socket::{Asked, ask};

/// What a pod's name may follow, as with kubectl.
const POD: [&str; 3] = ["pod/", "pods/", "po/"];

/// The namespace of `pod/NAME`, as of kubectl without a context.
const DEFAULT: &str = "default";

/// What is to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// A pod, as `pod/NAME`.
    Pod(String),
    /// An image: a name that no pod can have, or one without a namespace.
    Image {
        /// The image.
        image: ImageName,
        /// The name of a pod of which somebody has left out `pod/`, if that is possible.
        pod: Option<String>,
    },
    /// `NAMESPACE/POD`, or the image of that name.
    Either {
        /// The pod's namespace.
        namespace: NamespaceName,
        /// The pod's name.
        pod: String,
        /// The image.
        image: ImageName,
    },
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // With a tag or a digest, it is an image in any case.
        let kind = POD.iter().find_map(|kind| text.strip_prefix(kind));
        match kind.filter(|rest| !rest.contains([':', '@'])) {
            Some(pod) if is_pod(pod) => return Ok(Self::Pod(pod.to_owned())),
            Some(_) => {
                return Err("write pod/NAME, and the pod's namespace with --namespace".to_owned());
            }
            None => {}
        }
        let image: ImageName = text.parse().map_err(|error| format!("{error}"))?;
        let parts = text.split_once('/').filter(|(_, pod)| is_pod(pod));
        let parts = parts.and_then(|(namespace, pod)| Some((namespace.parse().ok()?, pod)));
        Ok(match parts {
            Some((namespace, pod)) => Self::Either {
                namespace,
                pod: pod.to_owned(),
                image,
            },
            None => Self::Image {
                image,
                pod: is_pod(text).then(|| text.to_owned()),
            },
        })
    }
}

/// Whether a pod can have this name: an RFC 1123 subdomain.
fn is_pod(name: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.split('.').all(|label| {
        let is_sound = label.chars().all(|c| is_letter(c) || c == '-');
        is_sound && label.starts_with(is_letter) && label.ends_with(is_letter)
    })
}

/// Prints what the agent says.
///
/// # Errors
/// No agent runs, it does not answer, or it knows neither a pod nor an image of this name.
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
        .block_on(explain(state_dir, name, namespace.as_ref()))?;
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
    name: &Named,
    namespace: Option<&NamespaceName>,
) -> anyhow::Result<(Explanation, Option<String>)> {
    match name {
        Named::Pod(pod) => {
            let namespace = namespace.map_or(DEFAULT, NamespaceName::as_str);
            let found = of_pod(state_dir, namespace, pod).await?;
            let explanation = found.with_context(|| {
                format!(
                    "this node has no TryLatest pod {namespace}/{pod}; {}",
                    elsewhere(namespace, pod)
                )
            })?;
            Ok((explanation, None))
        }
        Named::Either {
            namespace: own,
            pod,
            image,
        } if namespace.is_none() => {
            if let Some(explanation) = of_pod(state_dir, own.as_str(), pod).await? {
                return Ok((explanation, None));
            }
            let explanation = of_image(state_dir, image, None).await?;
            ensure!(
                explanation.images.iter().any(ImageNow::is_known),
                "this node has no TryLatest pod {own}/{pod}, and knows no image {image} (write that name if you mean the \
                 image); {}",
                elsewhere(own.as_str(), pod)
            );
            let note = format!(
                "this node has no TryLatest pod {own}/{pod}, so this is about the image {image}; {}",
                elsewhere(own.as_str(), pod)
            );
            Ok((explanation, Some(note)))
        }
        Named::Image {
            image,
            pod: Some(pod),
        } => {
            let explanation = of_image(state_dir, image, namespace).await?;
            let is_known = explanation.images.iter().any(ImageNow::is_known);
            let note = (!is_known).then(|| {
                format!(
                    "this node knows no image {image}; if you mean a pod, write pod/{pod} and its namespace with -n"
                )
            });
            Ok((explanation, note))
        }
        // For pods of a namespace, only an image can be explained.
        Named::Image { image, .. } | Named::Either { image, .. } => {
            Ok((of_image(state_dir, image, namespace).await?, None))
        }
    }
}

/// An agent knows only the pods of its own node.
fn elsewhere(namespace: &str, pod: &str) -> String {
    format!("for a pod of another node: kubectl trylatest explain -n {namespace} {pod}")
}

/// What the agent says of a pod; none if it knows no such pod.
async fn of_pod(
    state_dir: &Path,
    namespace: &str,
    pod: &str,
) -> anyhow::Result<Option<Explanation>> {
    let answer = asked(state_dir, &format!("{OF_POD}{namespace}/{pod}")).await?;
    match answer {
        // One without a body is that of an agent from before this command.
        (StatusCode::NOT_FOUND, body) if !body.is_empty() => Ok(None),
        answer => read(answer).map(Some),
    }
}

/// What the agent says of an image, for pods of a namespace.
async fn of_image(
    state_dir: &Path,
    image: &ImageName,
    namespace: Option<&NamespaceName>,
) -> anyhow::Result<Explanation> {
    let query = namespace.map(|namespace| format!("?namespace={namespace}"));
    let path = format!("{OF_IMAGE}{image}{}", query.unwrap_or_default());
    read(asked(state_dir, &path).await?)
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
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::page::tests::outage;
    use super::*;

    fn named(text: &str) -> Named {
        text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
    }

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
            ("team_a/app", false),
            ("team/app_1", false),
        ] {
            let is_either = matches!(named(name), Named::Either { .. });
            assert_eq!(is_either, is_pod, "{name}");
        }
        for bad in ["", "team/", "/app", "team/app@sha256:00", "A B"] {
            assert!(bad.parse::<Named>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pod_can_be_named_so_that_it_is_no_image() {
        for (name, pod) in [("pod/web", "web"), ("po/web-1.2", "web-1.2")] {
            assert_eq!(named(name), Named::Pod(pod.to_owned()));
        }
        assert!(matches!(named("pod/web:v1"), Named::Image { .. }));
        for bad in ["pod/", "pod/team/web", "pods/Web", "pod/-web", "pod/a..b"] {
            let why = bad.parse::<Named>().unwrap_err();
            assert!(why.contains("--namespace"), "{bad}: {why}");
        }
    }

    #[tokio::test]
    async fn without_an_agent_it_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["team/app", "pod/app", "reg.example/app:latest"] {
            let error = explain(dir.path(), &named(name), None).await.unwrap_err();
            let words = error.to_string();
            assert!(words.contains("no agent runs here"), "{words}");
            assert!(
                words.contains("kubectl -n trylatest-system exec"),
                "{words}"
            );
        }
    }

    /// What comes of it where an agent answers like this, one question after the other.
    async fn answered(
        name: &str,
        namespace: Option<&str>,
        answers: &[(&str, u16, String)],
    ) -> anyhow::Result<(Explanation, Option<String>)> {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(crate::agent::SOCKET)).unwrap();
        let agent = async {
            for (path, status, body) in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                let line = format!("GET {path} HTTP/1.1\r\n");
                assert!(request[..read].starts_with(line.as_bytes()), "not {line}");
                let head = format!(
                    "HTTP/1.1 {status} So\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let answer = [head.as_bytes(), body.as_bytes()].concat();
                stream.write_all(&answer).await.unwrap();
            }
        };
        let name = named(name);
        let namespace = namespace.map(|namespace| namespace.parse().unwrap());
        let (said, ()) = tokio::join!(explain(dir.path(), &name, namespace.as_ref()), agent);
        said
    }

    fn no_pod(path: &str) -> (&str, u16, String) {
        (path, 404, "this node has no such TryLatest pod".to_owned())
    }

    /// What an agent says of an image that it has never seen.
    fn never_seen() -> Value {
        let mut said = outage();
        let image = &mut said["images"][0];
        image["copy"] = json!({"state": "absent"});
        for nothing in ["kept", "tries", "users"] {
            image[nothing] = json!([]);
        }
        said
    }

    #[tokio::test]
    async fn what_is_neither_a_pod_nor_an_image_of_the_node_is_no_answer() {
        let pod = no_pod("/explain/pod/default/nope");
        let image = "/explain/image/docker.io/default/nope:latest";
        let unknown = (image, 200, never_seen().to_string());
        let said = answered("default/nope", None, &[pod.clone(), unknown.clone()]).await;
        let words = said.unwrap_err().to_string();
        for part in [
            "no TryLatest pod default/nope",
            "no image docker.io/default/nope:latest",
            "kubectl trylatest explain -n default nope",
        ] {
            assert!(words.contains(part), "{words}");
        }
        let known = (image, 200, outage().to_string());
        let said = answered("default/nope", None, &[pod, known]).await.unwrap();
        assert!(said.1.unwrap().contains("so this is about the image"));
        // Whoever means the image is told of it, known or not.
        for (name, namespace, query) in [
            ("default/nope:latest", None, ""),
            ("docker.io/default/nope", None, ""),
            ("default/nope", Some("team-a"), "?namespace=team-a"),
        ] {
            let path = format!("{image}{query}");
            let answers = [(path.as_str(), 200, never_seen().to_string())];
            let said = answered(name, namespace, &answers).await.unwrap();
            assert_eq!(said.1, None, "{name}");
        }
    }

    #[tokio::test]
    async fn an_unknown_image_that_may_be_meant_to_be_a_pod_is_noted() {
        let path = "/explain/image/docker.io/library/web-1:latest";
        let told = async |name: &str, said: Value| {
            let answers = [(path, 200, said.to_string())];
            answered(name, None, &answers).await.unwrap().1
        };
        let note = told("web-1", never_seen()).await.unwrap();
        assert!(
            note.contains("if you mean a pod, write pod/web-1"),
            "{note}"
        );
        for (name, said) in [
            ("web-1", outage()),
            ("web-1:latest", never_seen()),
            ("docker.io/library/web-1", never_seen()),
        ] {
            assert_eq!(told(name, said).await, None, "{name}");
        }
    }

    #[tokio::test]
    async fn a_pod_is_looked_for_where_it_is_said_to_be() {
        let found = |path| [(path, 200, outage().to_string())];
        for (name, namespace, path) in [
            ("team-a/web-1", None, "/explain/pod/team-a/web-1"),
            ("pod/web-1", Some("team-a"), "/explain/pod/team-a/web-1"),
            ("pod/web-1", None, "/explain/pod/default/web-1"),
        ] {
            let said = answered(name, namespace, &found(path)).await.unwrap();
            assert_eq!(said.1, None, "{name}");
        }
        let missing = [no_pod("/explain/pod/team-a/web-2")];
        let said = answered("pod/web-2", Some("team-a"), &missing).await;
        let words = said.unwrap_err().to_string();
        assert!(words.contains("no TryLatest pod team-a/web-2"), "{words}");
        let old = [("/explain/pod/default/web", 404, String::new())];
        let words = answered("pod/web", None, &old).await.unwrap_err();
        assert!(words.to_string().contains("older"), "{words}");
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
