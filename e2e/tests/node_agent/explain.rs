//! What the agent says that it would do, and what it does then; and a pull by hand.

use anyhow::{Context as _, ensure};
use serde_json::Value;
use trylatest_e2e::cluster::wait;
use trylatest_e2e::registry::Fault;

use crate::{Node, SOON, STALLED, Space, Tests, tests, tried};

pub(crate) fn tests() -> Tests {
    Tests {
        beside: tests![
            an_outage_is_explained_as_pods_then_find_it,
            a_pull_by_hand_says_by_its_exit_code_what_came_of_it,
        ],
        alone: tests![],
    }
}

/// What is said of one image, or of the one image of a pod.
async fn explained(node: &Node, args: &[&str]) -> anyhow::Result<Value> {
    let explain = [&["explain", "-o", "json"], args].concat();
    let said = node.trylatest(&explain).await?;
    let mut said: Value = serde_json::from_str(&said)?;
    Ok(said["images"][0].take())
}

/// The same of a pod, once the agent has seen it.
async fn explained_pod(space: &Space<'_>, pod: &str) -> anyhow::Result<Value> {
    let (namespace, kind) = (space.work.name(), format!("pod/{pod}"));
    let said = wait::until("the agent knows the pod", SOON, || async {
        let said = explained(space.node, &["-n", namespace, &kind]).await;
        Ok(said.ok())
    })
    .await?;
    ensure!(said["containers"][0] == "app", "{said}");
    let short = explained(space.node, &[&format!("{namespace}/{pod}")]).await?;
    ensure!(short["containers"][0] == "app", "{short}");
    Ok(said)
}

/// What kubectl says of a name for which there is no answer.
async fn unknown(node: &Node, args: &[&str]) -> anyhow::Result<String> {
    let said = explained(node, args).await;
    let why = said.err().context("there is an answer")?.to_string();
    ensure!(why.contains("exit code 1"), "{why}");
    Ok(why)
}

/// What a pod gets after a failure of this class, as it is said.
fn after<'a>(said: &'a Value, class: &str) -> Option<&'a str> {
    let mut after = said["after"].as_array()?.iter();
    after.find(|after| after["class"] == class)?["outcome"].as_str()
}

async fn an_outage_is_explained_as_pods_then_find_it(node: &Node) -> anyhow::Result<()> {
    let space = node.space("explain").await?;
    let image = space.image();
    let said = explained(node, &[&image]).await?;
    ensure!(said["now"]["step"] == "ask", "{said}");
    ensure!(said["copy"]["state"] == "absent", "{said}");
    let digest = space.push("one").await?;
    space.run("first", "fresh", "one").await?;
    let said = explained(node, &[&image]).await?;
    ensure!(
        said["copy"]["state"] == "usable" && said["copy"]["digest"] == digest,
        "{said}"
    );
    ensure!(said["access"]["everybodys"] == true, "{said}");
    ensure!(said["registry"]["open"].is_null(), "{said}");
    ensure!(said["users"][0]["pod"] == "first", "{said}");
    space.registry.fault(Fault::NeverAnswers).await?;
    ensure!(after(&said, "timeout") == Some("fallback"), "{said}");
    space.work.run(&tried("second", &image), STALLED).await?;
    // The first pod of the outage has waited for it, and the next ones do not.
    let said = explained(node, &[&image]).await?;
    ensure!(
        said["registry"]["open"]["failure"]["class"] == "timeout",
        "{said}"
    );
    let step = said["now"]["step"].as_str().context("no step")?;
    ensure!(
        ["not-asked", "passed-over", "probe"].contains(&step),
        "{said}"
    );
    // The pull goes on without the pod, or was ended meanwhile.
    let hangs = said["pull"]["standsStill"] == true;
    ensure!(hangs || said["tries"][0]["class"] == "timeout", "{said}");
    // The same for a pod, with its own rules.
    let strict = tried("strict", &image).annotated("trylatest.dev/fallback-on", "network");
    space.work.create(&strict).await?;
    let said = explained_pod(&space, "strict").await?;
    ensure!(after(&said, "timeout") == Some("refused"), "{said}");
    ensure!(after(&said, "network") == Some("fallback"), "{said}");
    let nobody = format!("{}/nobody", space.work.name());
    let why = unknown(node, &[&nobody]).await?;
    ensure!(
        why.contains(&format!("no TryLatest pod {nobody}"))
            && why.contains(&format!("no image docker.io/{nobody}:latest")),
        "{why}"
    );
    unknown(node, &["pod/nobody"]).await?;
    let page = node.trylatest(&["explain", &image]).await?;
    // For 5 s, or for longer if containerd was busy.
    ensure!(
        page.contains("confirmed") && page.contains("nothing arrived for "),
        "{page}"
    );
    space.registry.heal().await?;
    space.end().await
}

/// What `pull` prints as JSON, and the exit code that kubectl passes on.
async fn pulled(
    node: &Node,
    image: &str,
    more: &[&str],
) -> anyhow::Result<(Option<Value>, String)> {
    let args = [&["pull", "-o", "json", image], more].concat();
    match node.trylatest(&args).await {
        Ok(said) => Ok((Some(serde_json::from_str(&said)?), String::new())),
        Err(error) => Ok((None, format!("{error:#}"))),
    }
}

async fn is_pulled(space: &Space<'_>, outcome: &str, digest: &str) -> anyhow::Result<()> {
    let (said, why) = pulled(space.node, &space.image(), &[]).await?;
    let said = said.context(why)?;
    ensure!(
        said["outcome"] == outcome && said["digest"] == digest,
        "{said}"
    );
    Ok(())
}

/// What kubectl says of a command that ends with this exit code.
async fn ends_with(space: &Space<'_>, code: u8, more: &[&str]) -> anyhow::Result<()> {
    let (said, why) = pulled(space.node, &space.image(), more).await?;
    let words = format!("exit code {code}");
    ensure!(
        said.is_none() && why.contains(&words),
        "{more:?}: {said:?}, {why}"
    );
    Ok(())
}

async fn a_pull_by_hand_says_by_its_exit_code_what_came_of_it(node: &Node) -> anyhow::Result<()> {
    let space = node.space("byhand").await?;
    ends_with(&space, 4, &["--timeout=5s"]).await?;
    let one = space.push("one").await?;
    is_pulled(&space, "fresh", &one).await?;
    is_pulled(&space, "unchanged", &one).await?;
    // The agent learns of them.
    let said = explained(node, &[&space.image()]).await?;
    let tries = said["tries"].as_array().context("no tries")?;
    let are_by_hand = tries.iter().all(|tried| tried["byHand"] == true);
    ensure!(tries.len() == 2 && are_by_hand, "{said}");
    space.registry.fault(Fault::NeverAnswers).await?;
    ends_with(&space, 3, &[]).await?;
    ends_with(&space, 5, &["--fallback-on=network", "--timeout=6s"]).await?;
    space.registry.heal().await?;
    let two = space.push("two").await?;
    is_pulled(&space, "fresh", &two).await?;
    space.run("pod", "unchanged", "two").await?;
    space.end().await
}
