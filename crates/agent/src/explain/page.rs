//! An explanation for people: a page for each image.

use std::fmt::Write;

use jiff::Timestamp;
use trylatest_core::digest::Digest;
use trylatest_core::explain::{
    Access, CopyNow, CopyState, Explanation, Foreseen, ImageNow, Judge, KeptNow, PullNow,
    RegistryNow, Step, User, UserState,
};
use trylatest_core::identity::Identity;
use trylatest_core::outcome::Outcome;
use trylatest_core::record::{Try, last_confirmed};
use trylatest_core::text;
use trylatest_core::time::short_age;

/// How far the text is moved in from the words at its left.
const INDENT: usize = 13;

/// Most pods that are named.
const USERS_MAX: usize = 20;

/// Most identities that are named.
const IDENTITIES_MAX: usize = 3;

/// The whole page.
pub(super) fn page(explanation: &Explanation) -> String {
    let mut page = String::new();
    if let Some(pod) = &explanation.pod {
        for complaint in &pod.complaints {
            let _ = writeln!(page, "{}/{}: {complaint}", pod.namespace, pod.name);
        }
    }
    for image in &explanation.images {
        if !page.is_empty() {
            page.push('\n');
        }
        page.push_str(&of_image(explanation, image));
    }
    if page.is_empty() {
        page.push_str("the pod has no TryLatest container\n");
    }
    page
}

fn of_image(explanation: &Explanation, image: &ImageNow) -> String {
    let Explanation {
        time, node, pod, ..
    } = explanation;
    let now = *time;
    let whom = match pod {
        Some(pod) => format!(
            "for a pod like {}/{} ({})",
            pod.namespace,
            pod.name,
            image.containers.join(", ")
        ),
        None => "for a pod that sets nothing".to_owned(),
    };
    let mut page = format!("{} on {node}, {whom}\n", image.image);
    let mut section = |name: &str, lines: Vec<String>| {
        for (at, line) in lines.iter().enumerate() {
            let name = if at == 0 { name } else { "" };
            let _ = writeln!(page, "  {name:<width$}{line}", width = INDENT - 2);
        }
    };
    section("now", vec![foreseen(&image.now)]);
    section("outcomes", after(image));
    section("copy", copy(&image.copy, now));
    section("who", vec![access(&image.access, &image.copy)]);
    section("kept", kept(image.kept.as_deref(), now));
    section("registry", vec![registry(&image.registry, now)]);
    section("pull", vec![pull(image.pull.as_ref(), now)]);
    section("tries", tries(image, now));
    section("rules", rules(image));
    section("pods", users(image, now));
    page
}

fn foreseen(foreseen: &Foreseen) -> String {
    let Foreseen { step, outcome, why } = foreseen;
    let outcome = outcome.map_or("", Outcome::as_str);
    let what = match step {
        Step::NotHeld => "it starts at once".to_owned(),
        Step::Same | Step::NotAsked | Step::PassedOver => format!("{outcome}, at once"),
        Step::Look => format!("{outcome}, without asking the registry"),
        Step::Kubelet => "it waits for the kubelet".to_owned(),
        Step::Probe => "it asks the registry, which has failed".to_owned(),
        Step::Ask => "it asks the registry".to_owned(),
    };
    format!("{what}: {why}")
}

/// What follows from each failure, those together that have the same end.
fn after(image: &ImageNow) -> Vec<String> {
    let mut ends: Vec<(Outcome, Option<&str>, Vec<&str>)> = Vec::new();
    for after in &image.after {
        let note = after.note.as_deref();
        let class = after.class.as_str();
        let same =
            |end: &&mut (Outcome, Option<&str>, Vec<&str>)| (end.0, end.1) == (after.outcome, note);
        match ends.iter_mut().find(same) {
            Some((.., classes)) => classes.push(class),
            None => ends.push((after.outcome, note, vec![class])),
        }
    }
    let ends = ends.into_iter().map(|(outcome, note, classes)| {
        let note = note.map(|note| format!(": {note}")).unwrap_or_default();
        format!("after {}: {outcome}{note}", classes.join(", "))
    });
    let good = "fresh or unchanged if the registry answers in time".to_owned();
    [good].into_iter().chain(ends).collect()
}

fn copy(copy: &CopyNow, now: Timestamp) -> Vec<String> {
    let digest = copy.digest.as_ref().map_or("", Digest::short);
    let confirmed = last_confirmed(copy.confirmed, copy.rolled_back.as_ref(), now);
    let why = copy.why.as_deref().unwrap_or_default();
    let line = match copy.state {
        CopyState::Usable => {
            let size = copy.size_bytes.map(text::bytes).unwrap_or_default();
            format!("{digest}, {size}, {confirmed}")
        }
        CopyState::Absent => "none on this node".to_owned(),
        CopyState::Aside => {
            format!("{digest}, kept aside while the kubelet pulls, {confirmed}")
        }
        CopyState::Unusable => format!("no container can start from it: {why}"),
        CopyState::Unknown => format!("not known: {why}"),
    };
    let tag = copy.tag.as_ref();
    let other =
        tag.filter(|tag| copy.digest.is_some() && copy.digest.as_ref() != Some(&tag.digest));
    let other = other.map(|tag| {
        let (digest, ago) = (tag.digest.short(), short_age(now, tag.time));
        format!("the registry said {ago} ago that the tag points to {digest}")
    });
    [line].into_iter().chain(other).collect()
}

fn access(access: &Access, copy: &CopyNow) -> String {
    let Access {
        needs_credentials,
        everybodys,
        judge,
        pulled_for,
    } = access;
    if *everybodys && !needs_credentials {
        return "every pod: the registry has given this copy without credentials".to_owned();
    }
    let names: Vec<String> = pulled_for.iter().rev().map(Identity::to_string).collect();
    let names = text::some_of(&names, IDENTITIES_MAX);
    let pulled = if names.is_empty() {
        String::new()
    } else {
        format!("; the kubelet has pulled it for {names}")
    };
    match judge {
        Judge::Kubelet => {
            format!("the kubelet decides, by its records of who has pulled it{pulled}")
        }
        Judge::Nobody => "every pod, by --allow-unverified-fallback".to_owned(),
        Judge::Agent if copy.digest.is_none() => "there is no copy".to_owned(),
        Judge::Agent if !needs_credentials => {
            "every pod, until the registry wants credentials for it".to_owned()
        }
        Judge::Agent if *everybodys => {
            "every pod: the registry once gave this copy without credentials".to_owned()
        }
        Judge::Agent if names.is_empty() => {
            "no pod: the registry wants credentials, and nobody is known to have them".to_owned()
        }
        Judge::Agent => format!("pods like those for which the kubelet has pulled it: {names}"),
    }
}

fn kept(kept: Option<&[KeptNow]>, now: Timestamp) -> Vec<String> {
    let Some(kept) = kept else {
        return vec!["not known: containerd did not answer".to_owned()];
    };
    if kept.is_empty() {
        return vec!["no copy is kept for the next outage".to_owned()];
    }
    let lines = kept.iter().map(|kept| {
        let KeptNow {
            digest,
            pinned,
            used,
            ..
        } = kept;
        let pinned = if *pinned { "pinned" } else { "not pinned" };
        let used = short_age(now, *used);
        // It is written down only now and then.
        format!("{}, {pinned}, last used at most {used} ago", digest.short())
    });
    lines.collect()
}

fn registry(registry: &RegistryNow, now: Timestamp) -> String {
    let RegistryNow { name, open } = registry;
    match open {
        None => format!("{name}: its circuit is closed, it is asked"),
        Some(open) => format!(
            "{name} failed {} ago, so not every pod asks it ({}); asked again within {}",
            short_age(now, open.failed),
            open.failure,
            short_age(open.probe, now)
        ),
    }
}

fn pull(pull: Option<&PullNow>, now: Timestamp) -> String {
    let Some(pull) = pull else {
        return "none runs".to_owned();
    };
    let since = short_age(now, pull.began);
    let still = if pull.stands_still {
        ", and nothing moves"
    } else {
        ""
    };
    match (&pull.by_kubelet_for, pull.total_bytes) {
        (Some(identity), _) => format!("the kubelet, for {identity}, since {since}{still}"),
        (None, Some(total)) => {
            let (bytes, total) = (text::bytes(pull.bytes), text::bytes(total));
            format!("since {since}, {bytes} of {total}{still}")
        }
        (None, None) => format!("since {since}, {}{still}", text::bytes(pull.bytes)),
    }
}

fn tries(image: &ImageNow, now: Timestamp) -> Vec<String> {
    let mut lines: Vec<String> = image.tries.iter().map(|tried| of_try(tried, now)).collect();
    if lines.is_empty() {
        lines.push("none is remembered".to_owned());
    }
    if let Some(week) = image.week.filter(|week| week.tries > 0) {
        let (tries, failures) = (week.tries, week.failures);
        lines.push(format!(
            "{tries} in the last 7 days, {failures} of them failed"
        ));
    }
    lines
}

fn of_try(tried: &Try, now: Timestamp) -> String {
    let ago = format!("{} ago", short_age(now, tried.started));
    let result = tried.result.as_str();
    let digest = tried.digest.as_ref().map_or("", Digest::short);
    let by = match &tried.pulled_for {
        Some(identity) => format!(", by the kubelet for {identity}"),
        None if tried.by_hand => ", by hand".to_owned(),
        None => String::new(),
    };
    let what = match tried.result.failure() {
        Some(failure) => failure.to_string(),
        None => digest.to_owned(),
    };
    format!("{ago:<9} {result:<9} {what}{by}")
}

fn rules(image: &ImageNow) -> Vec<String> {
    let rules = image.rules.iter().map(|rule| {
        let ceiling = rule.ceiling.as_ref();
        let ceiling = ceiling.map(|ceiling| format!(", at most {ceiling}"));
        let ceiling = ceiling.unwrap_or_default();
        format!("{:<11} {} ({}{ceiling})", rule.key, rule.value, rule.from)
    });
    rules.collect()
}

fn users(image: &ImageNow, now: Timestamp) -> Vec<String> {
    let shown = image
        .users
        .iter()
        .take(USERS_MAX)
        .map(|user| of_user(user, now));
    let mut lines: Vec<String> = shown.collect();
    if lines.is_empty() {
        lines.push("none on this node".to_owned());
    }
    match image.users.len().saturating_sub(USERS_MAX) + image.more_users {
        0 => {}
        more => lines.push(format!("and {more} more")),
    }
    lines
}

fn of_user(user: &User, now: Timestamp) -> String {
    let state = match user.state {
        UserState::Waits => "waits",
        UserState::Fails => "the kubelet could not get the image",
        UserState::Starts => "may start",
        UserState::Refused => "must not start",
        UserState::Runs => "has started",
    };
    let outcome = user.outcome.map(|outcome| format!(", {outcome}"));
    let digest = user
        .digest
        .as_ref()
        .map(|digest| format!(", {}", digest.short()));
    let since = user.since.map(|since| match user.state {
        UserState::Waits => format!(", since {}", short_age(now, since)),
        _ => format!(", released {} ago", short_age(now, since)),
    });
    format!(
        "{}/{} {}: {state}{}{}{}",
        user.namespace,
        user.pod,
        user.container,
        outcome.unwrap_or_default(),
        digest.unwrap_or_default(),
        since.unwrap_or_default()
    )
}

#[cfg(test)]
pub(super) mod tests;
