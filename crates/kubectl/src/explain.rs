//! `explain`: what happened to one pod, in words, from what the API server knows.

use std::fmt::Write as _;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use serde::Serialize;
use trylatest_core::image::ImageName;
use trylatest_core::keys;
use trylatest_core::outcome::Outcome;
use trylatest_core::text;
use trylatest_core::time::short_age;

use crate::args::ExplainArgs;
use crate::cluster::{Cluster, now};
use crate::nodes::{AGENT_SELECTOR, SeenAgent};
use crate::output::{self, BAD, DIM, GOOD, HEAD, ODD, PLAIN, styled};
use crate::pods::{Gate, Label, OurContainer, SeenPod};

/// Most Events that are shown, the newest.
const EVENTS_MAX: usize = 10;

/// What `explain` answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    pod: String,
    node: Option<String>,
    /// What became of the pod as a whole.
    summary: String,
    containers: Vec<Explained>,
    /// Its Events from TryLatest, the newest last.
    events: Vec<Told>,
    /// Commands to go on with, each with a comment.
    next: Vec<String>,
    not_seen: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explained {
    name: String,
    image: String,
    outcome: Option<Outcome>,
    words: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    time: Option<Timestamp>,
    warning: bool,
    reason: String,
    message: String,
}

/// The agent of the pod's node.
enum Agent {
    /// The pod has no node yet.
    NoNode,
    /// There is none.
    Missing,
    Found(SeenAgent),
    /// Nobody could look.
    NotSeen(String),
}

/// Prints what happened.
///
/// # Errors
/// The pod cannot be read, or stdout cannot be written.
pub(crate) async fn run(cluster: &Cluster, args: &ExplainArgs) -> anyhow::Result<()> {
    let ExplainArgs {
        pod,
        output,
        place: _,
    } = args;
    let (namespace, name) = (cluster.namespace_of(pod)?, &pod.name);
    let pods = cluster.api::<Pod>(Some(namespace));
    let what = format!("get pod {namespace}/{name}");
    let pod = cluster.need(&what, pods.get(name)).await?;
    let seen = SeenPod::of(&pod);
    let (events, agent) = tokio::join!(events(cluster, &pod), agent(cluster, &seen));
    let answer = answer(&seen, events, &agent, now());
    output::print(*output, &answer, |answer| render(answer, now()))
}

async fn events(cluster: &Cluster, pod: &Pod) -> Result<Vec<Told>, String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let api = cluster.api::<Event>(pod.metadata.namespace.as_deref());
    let fields = format!("involvedObject.uid={uid}");
    let params = ListParams::default().fields(&fields);
    let keep = |all: &mut Vec<Told>, event: Event| {
        let ours = event
            .reason
            .as_deref()
            .is_some_and(|reason| reason.starts_with("TryLatest"));
        if ours && all.len() < 100 * EVENTS_MAX {
            all.push(told(&event));
        }
    };
    let listed = cluster
        .each("list the pod's Events", &api, &params, Vec::new, keep)
        .await;
    let mut events = listed.map_err(|unseen| unseen.why().to_owned())?;
    events.sort_by_key(|event| event.time);
    let first = events.len().saturating_sub(EVENTS_MAX);
    Ok(events.split_off(first))
}

fn told(event: &Event) -> Told {
    let time = event.event_time.as_ref().map(|time| time.0);
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let last = event.last_timestamp.as_ref().map(|time| time.0);
    Told {
        time: series.map(|time| time.0).or(last).or(time),
        warning: event.type_.as_deref() == Some("Warning"),
        reason: text::on_one_line(event.reason.as_deref().unwrap_or_default()),
        message: text::on_one_line(event.message.as_deref().unwrap_or_default()),
    }
}

async fn agent(cluster: &Cluster, pod: &SeenPod) -> Agent {
    let Some(node) = &pod.node else {
        return Agent::NoNode;
    };
    let params = ListParams::default()
        .labels(AGENT_SELECTOR)
        .fields(&format!("spec.nodeName={node}"));
    let api = cluster.api::<Pod>(None);
    match cluster
        .ask("look for the node's agent", api.list(&params))
        .await
    {
        Ok(list) => {
            let agents = list.items.iter().filter_map(SeenAgent::of);
            let best = agents.max_by_key(|agent| agent.ready);
            best.map_or(Agent::Missing, Agent::Found)
        }
        Err(unseen) => Agent::NotSeen(unseen.why().to_owned()),
    }
}

fn answer(
    pod: &SeenPod,
    events: Result<Vec<Told>, String>,
    agent: &Agent,
    now: Timestamp,
) -> Answer {
    let mut not_seen = Vec::new();
    not_seen.extend(events.as_ref().err().cloned());
    if let Agent::NotSeen(why) = agent {
        not_seen.push(why.clone());
    }
    Answer {
        pod: pod.id(),
        node: pod.node.clone(),
        summary: summary(pod, agent, now),
        containers: pod
            .ours
            .iter()
            .map(|own| explained(pod, own, now))
            .collect(),
        events: events.unwrap_or_default(),
        next: next(pod, agent),
        not_seen,
    }
}

fn summary(pod: &SeenPod, agent: &Agent, now: Timestamp) -> String {
    let ago = |since: Option<Timestamp>| match since {
        Some(since) => format!("{} ago", short_age(now, since)),
        None => "a while ago".to_owned(),
    };
    match (&pod.gate, pod.label) {
        (_, Label::Missing) => "This is not a TryLatest pod: when it was created, nothing in it said TryLatest, or the \
                                admission policies were not there. Static pods cannot be."
            .to_owned(),
        (_, Label::Overruled) if !pod.ours.iter().any(|own| own.always) => {
            "Another policy or webhook has taken its gate away, so nothing held it: it started as with IfNotPresent."
                .to_owned()
        }
        (_, Label::Overruled) => "Another policy or webhook has changed its pull policies to Always, so it has no gate: \
                                  the kubelet asks the registry, and the pod does not start while that is away."
            .to_owned(),
        (_, Label::Unheld) => "It has no gate (trylatest.dev/hold: none): it started at once, as with IfNotPresent, and its \
                               tags are checked afterwards, for the next start."
            .to_owned(),
        (Gate::Missing, Label::Gated) => "It is labelled as a TryLatest pod, but has no gate.".to_owned(),
        (Gate::Pending, _) => match pod.node {
            None => "It has no node yet.".to_owned(),
            Some(_) => "Its gate has not started yet.".to_owned(),
        },
        (Gate::Wanting(why), _) => format!("The kubelet cannot get the gate's image: {why}"),
        (Gate::Waiting(since), _) => {
            let answer = match agent {
                Agent::Missing => "No agent runs on its node: the gate opens by itself after 20 s.",
                Agent::Found(agent) if !agent.ready => "The node's agent is not ready.",
                _ => "",
            };
            format!("Its gate waits; it began {}. {answer}", ago(*since)).trim_end().to_owned()
        }
        (Gate::Opened, _) => match &pod.release {
            Some(release) => {
                format!("The node's agent released it {}.", ago(Some(release.time)))
            }
            None => "Its gate has opened, but its release is gone or cannot be read.".to_owned(),
        },
        (Gate::Unanswered, _) if pod.is_unanswered() => {
            "Its gate opened by itself after 20 s, because no agent answered: it started as with IfNotPresent.".to_owned()
        }
        (Gate::Unanswered, _) => "Its gate opened by itself: it could not see the agent's answer.".to_owned(),
        (Gate::Refused(message), _) => {
            let last = message.clone();
            format!("Its gate does not let it start, because it must not use the copy on the node. The gate said: {last}")
        }
    }
}

fn explained(pod: &SeenPod, own: &OurContainer, now: Timestamp) -> Explained {
    let release = pod.released(&own.name);
    let progress = pod
        .progress
        .as_ref()
        .and_then(|all| all.containers.get(&own.name));
    let mut words = match (release, progress) {
        _ if own.always => {
            "another policy says Always: the kubelet pulls it, and TryLatest does nothing for it"
                .to_owned()
        }
        (Some(release), _) => release.describe(now),
        (None, _) if matches!(pod.gate, Gate::Opened | Gate::Unanswered) => {
            "no agent has said what it started from".to_owned()
        }
        (None, Some(progress)) => text::on_one_line(&progress.describe()),
        (None, None) => "the agent has not reported on it".to_owned(),
    };
    if let Some(waiting) = own.waiting.as_ref().filter(|why| !is_usual(why)) {
        let _ = write!(words, "; the kubelet says {waiting}");
    }
    Explained {
        name: own.name.clone(),
        image: own.image.clone(),
        outcome: release.map(|release| release.outcome),
        words,
    }
}

/// Every pod goes through these.
fn is_usual(waiting: &str) -> bool {
    matches!(waiting, "PodInitializing" | "ContainerCreating")
}

/// What the API server does not know, and who does.
fn next(pod: &SeenPod, agent: &Agent) -> Vec<String> {
    let mut next = Vec::new();
    if pod.label == Label::Missing {
        next.push("kubectl trylatest doctor  # whether the policies are there".to_owned());
        return next;
    }
    // In full: team/app could be a pod as well. And not the pod, of which the agent forgets those that have ended. What
    // is no image's name may be anything, and whoever pastes the command would run it.
    let image = pod.ours.first().map(|own| own.image.parse::<ImageName>());
    match (agent, image) {
        (Agent::Found(agent), Some(Ok(image))) => next.push(format!(
            "kubectl -n {} exec {} -- /trylatest explain {image}  # what the node knows of the image, and what would happen now",
            agent.namespace, agent.name
        )),
        (Agent::Missing, _) => next.push(format!(
            "kubectl describe node {}  # why no agent runs there",
            pod.node.as_deref().unwrap_or_default()
        )),
        (Agent::Found(_) | Agent::NoNode | Agent::NotSeen(_), _) => {}
    }
    if !matches!(pod.gate, Gate::Missing) {
        next.push(format!(
            "kubectl -n {} logs {} -c {}  # what the gate saw",
            pod.namespace,
            pod.name,
            keys::GATE
        ));
    }
    next
}

fn render(answer: &Answer, now: Timestamp) -> String {
    let mut text = String::new();
    let node = answer.node.as_deref().unwrap_or("no node");
    let _ = writeln!(text, "{} on {node}", styled(HEAD, &answer.pod));
    let _ = writeln!(text, "{}", answer.summary);
    for container in &answer.containers {
        let (style, word) = match container.outcome {
            Some(outcome @ (Outcome::Fresh | Outcome::Unchanged | Outcome::Same)) => {
                (GOOD, outcome.as_str())
            }
            Some(outcome @ (Outcome::NotHeld | Outcome::HandedOver)) => (ODD, outcome.as_str()),
            Some(outcome @ (Outcome::Fallback | Outcome::Unavailable | Outcome::Refused)) => {
                (BAD, outcome.as_str())
            }
            None => (PLAIN, "-"),
        };
        let name = styled(HEAD, &container.name);
        let _ = writeln!(
            text,
            "\n{name}  {}  {}",
            container.image,
            styled(style, word)
        );
        let _ = writeln!(text, "  {}", container.words);
    }
    if !answer.events.is_empty() {
        let _ = writeln!(text, "\n{}", styled(HEAD, "Events"));
    }
    for event in &answer.events {
        let age = event
            .time
            .map_or("-".to_owned(), |time| short_age(now, time));
        let style = if event.warning { ODD } else { PLAIN };
        let reason = styled(style, &event.reason);
        let _ = writeln!(text, "  {age} ago  {reason}  {}", event.message);
    }
    if !answer.next.is_empty() {
        let _ = writeln!(text, "\n{}", styled(DIM, "More:"));
    }
    for next in &answer.next {
        let _ = writeln!(text, "  {next}");
    }
    for why in &answer.not_seen {
        let _ = writeln!(text, "{} {why}", styled(ODD, "not looked at:"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nodes::tests::agent;
    use crate::pods::tests::{gate_status, pod, release};

    fn now() -> Timestamp {
        "2026-01-01T12:05:00Z".parse().unwrap()
    }

    fn shown(pod: &SeenPod, agent: &Agent) -> String {
        let event = Told {
            time: Some("2026-01-01T12:04:00Z".parse().unwrap()),
            warning: true,
            reason: "TryLatestFallback".into(),
            message: "app: using the cached copy".into(),
        };
        let answer = answer(pod, Ok(vec![event]), agent, now());
        anstream::adapter::strip_str(&render(&answer, now())).to_string()
    }

    #[test]
    fn a_fallback_is_told_in_words() {
        let mut old = release("fallback", "a");
        old["class"] = json!("network");
        old["message"] = json!("connection refused");
        let seen = SeenPod::of(&pod("app-1", "n", &old));
        let text = shown(&seen, &Agent::Found(agent("n", true)));
        for part in [
            "shop/app-1 on n\nThe node's agent released it 5m ago.\n",
            "\napp  reg.example/app:1  fallback\n  using the cached copy of reg.example/app:1: sha256:a00000000000, \
             confirmed 2h ago; network: connection refused\n",
            "  60s ago  TryLatestFallback  app: using the cached copy\n",
            "kubectl -n trylatest-system exec trylatest-agent-n -- /trylatest explain reg.example/app:1  # what",
            "kubectl -n shop logs app-1 -c trylatest-gate",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn each_state_has_its_words() {
        let with = |gate: serde_json::Value, agent: &Agent| {
            let mut object = serde_json::to_value(pod("a", "n", &json!(null))).unwrap();
            object["status"]["initContainerStatuses"] = json!([gate_status(&gate)]);
            shown(
                &SeenPod::of(&serde_json::from_value(object).unwrap()),
                agent,
            )
        };
        let waits = with(json!({"running": {}}), &Agent::Missing);
        assert!(waits.contains("No agent runs on its node"), "{waits}");
        assert!(waits.contains("kubectl describe node n"), "{waits}");
        let alone = json!({"terminated": {"exitCode": 0, "message": "unanswered after 20s"}});
        assert!(with(alone, &Agent::NoNode).contains("because no agent answered"));
        let refused = json!({"terminated": {"exitCode": 1, "message": "refused: app: too old\nrefused after 0.10s"}});
        assert!(with(refused, &Agent::NoNode).contains("The gate said: refused: app: too old"));
        let mut plain = pod("a", "n", &json!(null));
        plain.metadata.labels = None;
        assert!(
            shown(&SeenPod::of(&plain), &Agent::NoNode).contains("This is not a TryLatest pod")
        );
    }
}
