//! What agents ask the API server for, counted where they ask: per second and per agent.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::{Method, Request, Uri};
use kube::Client;
use kube::client::Body;
use serde::Serialize;
use tokio::time::Instant;
use tracing::warn;

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Watch,
    List,
    Get,
    /// A release, or a sign of life.
    Pod,
    Event,
    /// A node's report.
    Node,
    Other,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Watch,
        Self::List,
        Self::Get,
        Self::Pod,
        Self::Event,
        Self::Node,
        Self::Other,
    ];

    fn of(method: &Method, uri: &Uri) -> Self {
        let is_of_node = uri.path().starts_with("/api/v1/nodes/");
        let is_of_pod = uri.path().contains("/pods/");
        let is_list = uri.path() == "/api/v1/pods";
        let query = uri.query().unwrap_or_default();
        match *method {
            Method::GET if is_list && query.contains("watch=") => Self::Watch,
            Method::GET if is_list => Self::List,
            Method::GET => Self::Get,
            Method::PATCH if is_of_node => Self::Node,
            Method::PATCH if is_of_pod => Self::Pod,
            Method::POST if uri.path().ends_with("/events") => Self::Event,
            _ => Self::Other,
        }
    }
}

/// How many requests of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    pub(crate) watch: u64,
    pub(crate) list: u64,
    pub(crate) get: u64,
    pub(crate) pod: u64,
    pub(crate) event: u64,
    pub(crate) node: u64,
    pub(crate) other: u64,
}

impl Counts {
    fn of(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Watch => &mut self.watch,
            Kind::List => &mut self.list,
            Kind::Get => &mut self.get,
            Kind::Pod => &mut self.pod,
            Kind::Event => &mut self.event,
            Kind::Node => &mut self.node,
            Kind::Other => &mut self.other,
        }
    }

    fn add(&mut self, mut other: Self) {
        for kind in Kind::ALL {
            *self.of(kind) += *other.of(kind);
        }
    }

    /// All but watches.
    pub(crate) fn beyond_watch(mut self) -> u64 {
        Kind::ALL
            .into_iter()
            .skip(1)
            .map(|kind| *self.of(kind))
            .sum()
    }
}

/// What was asked since some moment.
#[derive(Debug)]
pub(crate) struct Traffic {
    counted: Mutex<Counted>,
}

#[derive(Debug)]
struct Counted {
    since: Instant,
    seconds: Vec<Counts>,
    agents: Vec<Counts>,
}

impl Counted {
    fn new(agents: usize) -> Self {
        Self {
            since: Instant::now(),
            seconds: Vec::new(),
            agents: vec![Counts::default(); agents],
        }
    }
}

/// What one agent asked.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct OfAgent {
    pub(crate) agent: usize,
    pub(crate) counts: Counts,
}

/// What was asked in a time.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) seconds: f64,
    pub(crate) counts: Counts,
    /// The agent with the most, watches left out.
    pub(crate) busiest_agent: OfAgent,
    /// In the second with the most, watches left out.
    pub(crate) busiest_second: u64,
}

impl Asked {
    /// Watches left out.
    pub(crate) fn per_second(&self) -> f64 {
        float(self.counts.beyond_watch()) / self.seconds
    }

    /// Watches left out.
    pub(crate) fn per_agent_minute(&self, agents: usize) -> f64 {
        self.per_second() * 60.0 / float(agents as u64)
    }
}

impl Traffic {
    pub(crate) fn new(agents: usize) -> Arc<Self> {
        Arc::new(Self {
            counted: Mutex::new(Counted::new(agents)),
        })
    }

    /// Begins to count, and says what was counted before.
    pub(crate) fn begin(&self) -> Asked {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Counted::new(counted.agents.len());
        let before = std::mem::replace(&mut *counted, next);
        let mut counts = Counts::default();
        before.seconds.iter().for_each(|second| counts.add(*second));
        let seconds = before.seconds.iter().map(|second| second.beyond_watch());
        let agents = before.agents.iter().enumerate();
        let busiest_agent = agents
            .map(|(agent, &counts)| OfAgent { agent, counts })
            .max_by_key(|of| of.counts.beyond_watch());
        Asked {
            seconds: before.since.elapsed().as_secs_f64(),
            counts,
            busiest_agent: busiest_agent.unwrap_or_default(),
            busiest_second: seconds.max().unwrap_or(0),
        }
    }

    fn saw(&self, agent: usize, kind: Kind) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let second = usize::try_from(counted.since.elapsed().as_secs()).unwrap_or(0);
        if counted.seconds.len() <= second {
            counted.seconds.resize(second + 1, Counts::default());
        }
        *counted.seconds[second].of(kind) += 1;
        *counted.agents[agent].of(kind) += 1;
    }

    /// The same client, whose requests are counted as this agent's; those that fail are logged.
    pub(crate) fn counting(self: &Arc<Self>, client: Client, agent: usize) -> Client {
        let traffic = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let kind = Kind::of(request.method(), request.uri());
            traffic.saw(agent, kind);
            let client = client.clone();
            async move {
                let answer = client.send(request).await;
                match &answer {
                    Ok(answer) if answer.status().is_success() => {}
                    Ok(answer) => warn!(agent, ?kind, status = %answer.status(), "refused"),
                    Err(error) => warn!(agent, ?kind, %error, "no answer"),
                }
                answer
            }
        });
        Client::new(service, "default")
    }
}

/// For ratios; nothing that is counted here comes near what a float cannot hold.
#[expect(clippy::cast_precision_loss, reason = "counts of a few minutes")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        for (method, uri, kind) in [
            (
                Method::GET,
                "/api/v1/pods?&watch=true&fieldSelector=x",
                Kind::Watch,
            ),
            (Method::GET, "/api/v1/pods?&limit=10", Kind::List),
            (Method::GET, "/api/v1/nodes/a", Kind::Get),
            (Method::GET, "/api/v1/namespaces/a/pods/b", Kind::Get),
            (Method::PATCH, "/api/v1/namespaces/a/pods/b?", Kind::Pod),
            (Method::PATCH, "/api/v1/nodes/a/status?", Kind::Node),
            (Method::PATCH, "/api/v1/nodes/a?", Kind::Node),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/a/events",
                Kind::Event,
            ),
            (Method::DELETE, "/api/v1/nodes/a", Kind::Other),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(Kind::of(&method, &uri), kind, "{method} {uri}");
        }
    }

    #[test]
    fn a_phase_begins_at_nothing() {
        let traffic = Traffic::new(2);
        for (agent, kind) in [(0, Kind::Watch), (1, Kind::Pod), (1, Kind::Event)] {
            traffic.saw(agent, kind);
        }
        let asked = traffic.begin();
        assert_eq!(asked.counts.beyond_watch(), 2);
        let OfAgent { agent, counts } = asked.busiest_agent;
        assert_eq!((agent, counts.pod, counts.event), (1, 1, 1));
        assert_eq!(asked.busiest_second, 2);
        assert_eq!(traffic.begin().counts, Counts::default());
    }
}
