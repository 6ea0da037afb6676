//! `check`: waits for a rollout, then says whether its pods run what their tags point to.

mod judge;
mod rollout;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Error, bail};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use self::judge::{Checked, Demand, Judgement};
use self::rollout::Rollout;
use crate::args::CheckArgs;
use crate::cluster::{Cluster, Unseen};
use crate::output::{self, BAD, Cell, GOOD, HEAD, ODD, columns, styled};
use crate::target::{Kind, Target};

/// A pod runs an old copy, or nobody can say what it runs.
const OLD: u8 = 3;

/// The rollout failed, or did not end in time.
const NOT_ROLLED_OUT: u8 = 4;

/// Between two looks at a workload.
const PAUSE: Duration = Duration::from_secs(2);

/// Most pods of one workload that are looked at.
const PODS_MAX: usize = 10_000;

/// What `check` answers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    workload: String,
    namespace: String,
    fresh: bool,
    /// Whether it is as asked.
    ok: bool,
    /// Why the rollout has not ended, if it has not.
    rollout: Option<String>,
    pods: usize,
    containers: Vec<Checked>,
}

/// Waits, judges, prints. Says by the exit code how it is.
///
/// # Errors
/// The API server cannot be asked, there is no such workload, or it has no TryLatest pod.
pub(crate) async fn run(
    connect: impl AsyncFnOnce() -> anyhow::Result<Cluster>,
    args: &CheckArgs,
) -> anyhow::Result<ExitCode> {
    let CheckArgs {
        target,
        fresh,
        timeout,
        output,
        place: _,
    } = args;
    if matches!(target.kind, Kind::Namespace | Kind::CronJob) {
        bail!(
            "{target} has no pods of its own: check a Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or pod"
        );
    }
    let demand = if *fresh {
        Demand::Fresh
    } else {
        Demand::NotOld
    };
    let deadline = Instant::now() + *timeout;
    let limit = humantime::format_duration(*timeout);
    let Ok(cluster) = timeout_at(deadline, connect()).await else {
        bail!("check {target}: the kubeconfig's login did not end within {limit} (--timeout)");
    };
    let cluster = cluster?;
    let watch = Watch {
        cluster: &cluster,
        target,
        demand,
    };
    let Some((judgement, rollout)) = wait(deadline, async || watch.look().await).await? else {
        let server = cluster.server();
        bail!("check {target}: {server} did not answer everything within {limit} (--timeout)");
    };
    let answer = Answer {
        workload: target.to_string(),
        namespace: cluster.namespace().to_owned(),
        fresh: *fresh,
        ok: rollout.is_none() && judgement.containers.iter().all(|c| c.ok),
        rollout,
        pods: judgement.pods,
        containers: judgement.containers,
    };
    output::print(*output, &answer, text)?;
    Ok(match (&answer.rollout, answer.ok) {
        (Some(_), _) => ExitCode::from(NOT_ROLLED_OUT),
        (None, false) => ExitCode::from(OLD),
        (None, true) => ExitCode::SUCCESS,
    })
}

/// Looks until nothing is to be waited for, or until the time is up, even in the middle of a look: how it is by then, and
/// why the rollout has not ended, if it has not. A look that fails is repeated if that may pass. None if not even the
/// first look came to an end.
///
/// # Errors
/// A look fails for good, or none succeeds until the time is up.
async fn wait(
    deadline: Instant,
    mut look: impl AsyncFnMut() -> Result<(Judgement, Option<WaitsFor>), Failure>,
) -> anyhow::Result<Option<(Judgement, Option<String>)>> {
    let mut seen: Option<(Judgement, String)> = None;
    let mut has_failed = false;
    let in_the_end = |seen: Option<(Judgement, String)>, what: &str| {
        seen.map(|(judgement, why)| (judgement, Some(format!("{why}; {what}"))))
    };
    loop {
        let Ok(looked) = timeout_at(deadline, look()).await else {
            return Ok(in_the_end(
                seen,
                "the time was up before the next look ended",
            ));
        };
        let is_last = Instant::now() + PAUSE > deadline;
        match looked {
            Ok((judgement, None)) => return Ok(Some((judgement, None))),
            Ok((judgement, Some(WaitsFor { why, is_final }))) => {
                if is_final || is_last {
                    return Ok(Some((judgement, Some(why))));
                }
                // Once.
                if seen.is_none_or(|(_, said)| said != why) {
                    eprintln!("waiting: {why}");
                }
                seen = Some((judgement, why));
                has_failed = false;
            }
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::MayPass(why)) if is_last => {
                let ended = in_the_end(seen, &format!("the last look failed: {why}"));
                return ended.map(Some).ok_or_else(|| Error::msg(why));
            }
            Err(Failure::MayPass(why)) => {
                if !has_failed {
                    eprintln!("waiting: {why}");
                }
                has_failed = true;
            }
        }
        sleep(PAUSE).await;
    }
}

/// Why a look came to nothing.
enum Failure {
    /// The API server did not answer, or not with what was asked for. The next look may succeed.
    MayPass(String),
    /// It will not change by itself.
    Final(Error),
}

impl From<Unseen> for Failure {
    fn from(unseen: Unseen) -> Self {
        match unseen {
            Unseen::Failed(why) => Self::MayPass(why),
            Unseen::Forbidden(why) | Unseen::Absent(why) => Self::Final(Error::msg(why)),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Why to look again.
struct WaitsFor {
    why: String,
    /// It will not change by itself.
    is_final: bool,
}

struct Watch<'a> {
    cluster: &'a Cluster,
    target: &'a Target,
    demand: Demand,
}

impl Watch<'_> {
    /// How the workload's pods are, and what there is to wait for, if anything.
    async fn look(&self) -> Result<(Judgement, Option<WaitsFor>), Failure> {
        let name = &self.target.name;
        let what = format!("get {}", self.target);
        let objects = self.cluster.objects(self.target);
        let object = self.cluster.ask(&what, objects.get(name)).await?;
        let pods = self.pods(&object).await?;
        let json = serde_json::to_value(&object).map_err(Error::from)?;
        let judgement = judge::judge(&pods, self.demand);
        let waits = |why, is_final| Some(WaitsFor { why, is_final });
        match rollout::rollout(self.target.kind, &json) {
            Rollout::Waiting(why) => return Ok((judgement, waits(why, false))),
            Rollout::Failed(why) => return Ok((judgement, waits(why, true))),
            Rollout::Done => {}
        }
        has_something_to_judge(self.target, &judgement)?;
        let pulls = judgement
            .containers
            .iter()
            .find(|container| container.waits);
        let pulls = pulls.map(|container| format!("{}: {}", container.pod, container.words));
        Ok((judgement, pulls.and_then(|why| waits(why, false))))
    }

    /// The pods that the workload has now.
    async fn pods(&self, object: &DynamicObject) -> Result<Vec<Pod>, Failure> {
        let namespace = Some(self.cluster.namespace());
        let uid = object.metadata.uid.clone().unwrap_or_default();
        if self.target.kind == Kind::Pod {
            let pod = serde_json::to_value(object).and_then(serde_json::from_value);
            return Ok(vec![pod.map_err(Error::from)?]);
        }
        let selector = rollout::selector(&object.data).context("the workload has no selector")?;
        let params = ListParams::default().labels(&selector);
        let mut owners = vec![uid.clone()];
        if self.target.kind == Kind::Deployment {
            let sets = self.cluster.api::<ReplicaSet>(namespace);
            let mine = |all: &mut Vec<String>, set: ReplicaSet| {
                if is_owned(&set.metadata, std::slice::from_ref(&uid)) {
                    all.extend(set.metadata.uid);
                }
            };
            let what = "list the Deployment's ReplicaSets";
            let listed = self
                .cluster
                .each(what, &sets, &params, Vec::new, mine)
                .await;
            owners.extend(listed?);
        }
        let pods = self.cluster.api::<Pod>(namespace);
        let mine = |all: &mut Vec<Pod>, pod: Pod| {
            if stays(self.target.kind, &pod) && is_owned(&pod.metadata, &owners) {
                keep(all, pod);
            }
        };
        let listed = self
            .cluster
            .each("list the workload's pods", &pods, &params, Vec::new, mine)
            .await;
        Ok(not_too_many(self.target, listed?)?)
    }
}

/// Checks that there is something to judge.
///
/// # Errors
/// The workload has no pods, or none that is a TryLatest pod.
fn has_something_to_judge(target: &Target, judgement: &Judgement) -> anyhow::Result<()> {
    if judgement.pods == 0 {
        bail!("{target} has no pods");
    }
    if judgement.containers.is_empty() {
        bail!(
            "{target} has no TryLatest container or image volume: neither the policy TryLatest nor the annotations \
             trylatest.dev/containers and trylatest.dev/volumes had any effect when its pods were created (kubectl \
             trylatest doctor)"
        );
    }
    Ok(())
}

/// Keeps one more than can be looked at, which says that there are too many.
fn keep(all: &mut Vec<Pod>, pod: Pod) {
    if all.len() <= PODS_MAX {
        all.push(pod);
    }
}

/// The workload's pods, if all of them were kept.
///
/// # Errors
/// There are too many.
fn not_too_many(target: &Target, pods: Vec<Pod>) -> anyhow::Result<Vec<Pod>> {
    if pods.len() > PODS_MAX {
        bail!("{target} has more than {PODS_MAX} pods, which is more than check can look at");
    }
    Ok(pods)
}

/// Whether what a pod runs counts. An evicted one of a Deployment stays, but runs nothing, and another is in its place.
fn stays(kind: Kind, pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let is_replaced = kind != Kind::Job && matches!(phase, Some("Succeeded" | "Failed"));
    pod.metadata.deletion_timestamp.is_none() && !is_replaced
}

fn is_owned(
    meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    owners: &[String],
) -> bool {
    let mut references = meta.owner_references.iter().flatten();
    references.any(|owner| owner.controller == Some(true) && owners.contains(&owner.uid))
}

fn text(answer: &Answer) -> String {
    let of_interest = answer.containers.iter().filter(|container| !container.ok);
    let rows: Vec<[Cell; 4]> = of_interest
        .map(|container| {
            let node = container.node.clone().unwrap_or_else(|| "-".to_owned());
            [
                format!("{} {}", container.pod, container.container).into(),
                node.into(),
                Cell::new(BAD, container.state.as_str()),
                container.words.clone().into(),
            ]
        })
        .collect();
    let bad = rows.len();
    let mut text = String::new();
    if bad > 0 {
        text.push_str(&columns(["POD, CONTAINER", "NODE", "RUNS", "WHY"], rows));
    }
    let workload = styled(HEAD, &answer.workload);
    let containers = answer.containers.len();
    let words = match (&answer.rollout, bad) {
        (Some(why), _) => styled(ODD, &format!("not rolled out: {why}")),
        (None, 0) if answer.fresh => styled(
            GOOD,
            &format!(
                "{containers} of {containers} containers run what their tag pointed to when they started"
            ),
        ),
        (None, 0) => styled(
            GOOD,
            &format!("none of {containers} containers runs an old copy"),
        ),
        (None, bad) => styled(
            BAD,
            &format!("{bad} of {containers} containers are not as asked"),
        ),
    };
    let _ = writeln!(text, "{workload}: {words}");
    text
}

/// A value by its JSON pointer, as a number.
fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    type Looked = Result<(Judgement, Option<WaitsFor>), Failure>;

    #[expect(clippy::unnecessary_wraps, reason = "it is one of several looks")]
    fn done() -> Looked {
        Ok((judge::judge(&[], Demand::NotOld), None))
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is one of several looks")]
    fn not_ready() -> Looked {
        let why = "the pod is not ready".to_owned();
        let is_final = false;
        Ok((
            judge::judge(&[], Demand::NotOld),
            Some(WaitsFor { why, is_final }),
        ))
    }

    fn refused() -> Looked {
        Err(Unseen::Failed("connection refused".into()).into())
    }

    /// What `check` makes of these looks, of which the last one is repeated, and how long it takes.
    async fn waits(looks: &[fn() -> Looked]) -> (anyhow::Result<Option<String>>, Duration) {
        let begun = Instant::now();
        let looked = Cell::new(0);
        let waited = wait(begun + TIMEOUT, async || {
            let look = looks.get(looked.replace(looked.get() + 1));
            look.or(looks.last()).unwrap()()
        });
        let waited = waited.await.map(|waited| waited.unwrap().1);
        (waited, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_restarts_does_not_end_the_check() {
        let (waited, took) = waits(&[refused, not_ready, refused, refused, done]).await;
        assert_eq!((waited.unwrap(), took), (None, 4 * PAUSE));
        // Until the time is up.
        let (waited, took) = waits(&[refused]).await;
        assert_eq!(waited.unwrap_err().to_string(), "connection refused");
        assert!(took <= TIMEOUT && took + PAUSE > TIMEOUT, "{took:?}");
        // It has seen the workload once.
        let (waited, _) = waits(&[not_ready, refused]).await;
        let why = "the pod is not ready; the last look failed: connection refused";
        assert_eq!(waited.unwrap().as_deref(), Some(why));
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_pass_ends_the_check_at_once() {
        let forbidden: fn() -> Looked = || Err(Unseen::Forbidden("you may not".into()).into());
        let absent: fn() -> Looked = || Err(Unseen::Absent("you may not".into()).into());
        let others: fn() -> Looked = || Err(Error::msg("you may not").into());
        for look in [forbidden, absent, others] {
            let (waited, took) = waits(&[not_ready, look, done]).await;
            assert_eq!(waited.unwrap_err().to_string(), "you may not");
            assert_eq!(took, PAUSE);
        }
    }

    /// What `check` makes of looks, of which the first few see a rollout under way, and how long it takes. The next one
    /// never ends.
    async fn hangs_after(looks: usize) -> (Option<(Judgement, Option<String>)>, Duration) {
        let begun = Instant::now();
        let looked = Cell::new(0);
        let waited = wait(begun + TIMEOUT, async || {
            if looked.replace(looked.get() + 1) == looks {
                pending::<()>().await;
            }
            not_ready()
        });
        (waited.await.unwrap(), begun.elapsed())
    }

    #[test]
    fn pods_that_cannot_be_looked_at_are_not_passed_over() {
        let target = "deployment/app".parse().unwrap();
        let mut pods = Vec::new();
        for _ in 0..PODS_MAX {
            keep(&mut pods, Pod::default());
        }
        assert_eq!(not_too_many(&target, pods.clone()).unwrap().len(), PODS_MAX);
        for _ in 0..3 {
            keep(&mut pods, Pod::default());
        }
        let why = not_too_many(&target, pods).unwrap_err().to_string();
        assert!(why.contains("more than 10000 pods"), "{why}");
    }

    /// Whatever a single request may take.
    #[tokio::test(start_paused = true)]
    async fn a_look_that_hangs_ends_when_the_time_is_up() {
        let (waited, took) = hangs_after(0).await;
        assert!(waited.is_none());
        assert_eq!(took, TIMEOUT);
        let (waited, took) = hangs_after(2).await;
        let why = "the pod is not ready; the time was up before the next look ended";
        assert_eq!(waited.unwrap().1.as_deref(), Some(why));
        assert_eq!(took, TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rollout_that_does_not_end_is_looked_at_until_the_time_is_up() {
        let (waited, took) = hangs_after(usize::MAX).await;
        assert_eq!(waited.unwrap().1.as_deref(), Some("the pod is not ready"));
        assert!(took <= TIMEOUT && took + PAUSE > TIMEOUT, "{took:?}");
    }
}
