//! What the Tab key offers: for the program itself by clap, for `kubectl trylatest` by kubectl's own way.
//!
//! kubectl runs `kubectl_complete-trylatest` with the words so far, and expects one offer per line and a last line
//! with a number that says what the shell is to do with them (cobra's `ShellCompDirective`).

use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _};
use kube::api::{Api, DynamicObject, ListParams};
use trylatest_core::keys;
use trylatest_core::namespace::NamespaceName;

use crate::args::{Cli, ClusterArgs};
use crate::cluster::Cluster;
use crate::kubeconfig;
use crate::target::{Kind, Target};

/// Whoever presses Tab does not wait long.
const DEADLINE: Duration = Duration::from_secs(3);

/// Most names that are offered.
const OFFERS_MAX: usize = 500;

/// The shell is not to offer files.
const NO_FILES: u8 = 4;

/// Nor to go on to the next word.
const NO_SPACE: u8 = 2;

/// What may come next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// One of these words.
    Words(Vec<String>),
    /// One of these words, which another follows without a space.
    Begins(Vec<String>),
    /// A file.
    File,
    /// A pod.
    Pod,
    /// An object of this kind, as `KIND/NAME`, written with this word for the kind.
    Object(Kind, String),
    /// A namespace.
    Namespace,
    /// A context of the kubeconfig.
    Context,
}

/// What kubectl is to be answered. Nothing that goes wrong on the way is said: the line is not to be spoiled.
pub(crate) async fn offers(words: &[String]) -> String {
    let (offers, directive) = match next(words) {
        Next::Words(words) => (words, NO_FILES),
        Next::Begins(words) => (words, NO_FILES | NO_SPACE),
        Next::File => (vec![], 0),
        Next::Pod => (named(words, Kind::Pod, "").await, NO_FILES),
        Next::Namespace => (named(words, Kind::Namespace, "").await, NO_FILES),
        Next::Object(kind, word) => (named(words, kind, &format!("{word}/")).await, NO_FILES),
        Next::Context => (contexts(), NO_FILES),
    };
    let start = words.last().map(String::as_str).unwrap_or_default();
    let mut text = String::new();
    for offer in offers.iter().filter(|offer| offer.starts_with(start)) {
        let _ = writeln!(text, "{offer}");
    }
    let _ = writeln!(text, ":{directive}");
    text
}

fn next(words: &[String]) -> Next {
    let mut root = Cli::command();
    // Makes global options known to the commands.
    root.build();
    let (last, before) = match words.split_last() {
        Some((last, before)) => (last.as_str(), before),
        None => ("", words),
    };
    let mut command = &root;
    let mut positionals = 0;
    let mut wants: Option<&clap::Arg> = None;
    for word in before {
        if wants.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            wants = option(command, word).filter(|arg| takes_value(arg) && !word.contains('='));
        } else if let Some(inner) = command.find_subcommand(word) {
            command = inner;
        } else {
            positionals += 1;
        }
    }
    if let Some(arg) = wants {
        return value(arg);
    }
    if last.starts_with('-') {
        return Next::Words(options(command));
    }
    if command.has_subcommands() && positionals == 0 {
        let visible = command
            .get_subcommands()
            .filter(|inner| !inner.is_hide_set());
        return Next::Words(visible.map(|inner| inner.get_name().to_owned()).collect());
    }
    match (command.get_name(), positionals) {
        ("check" | "on" | "off", 0) => target(last),
        ("explain", 0) => Next::Pod,
        ("man", 0) => Next::File,
        ("completion", 0) => command
            .get_positionals()
            .next()
            .map_or(Next::Words(vec![]), value),
        _ => Next::Words(vec![]),
    }
}

/// The option that a word like `--name`, `--name=x` or `-n` names.
fn option<'a>(command: &'a Command, word: &str) -> Option<&'a clap::Arg> {
    let name = word.split('=').next().unwrap_or(word);
    command.get_arguments().find(|arg| {
        let is_long = arg
            .get_long()
            .is_some_and(|long| name.strip_prefix("--") == Some(long));
        let is_short = arg
            .get_short()
            .is_some_and(|short| name.strip_prefix('-') == Some(&short.to_string()));
        is_long || is_short
    })
}

fn takes_value(arg: &clap::Arg) -> bool {
    arg.get_action().takes_values()
}

fn options(command: &Command) -> Vec<String> {
    let visible = command.get_arguments().filter(|arg| !arg.is_hide_set());
    visible
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .collect()
}

fn value(arg: &clap::Arg) -> Next {
    match arg.get_id().as_str() {
        "namespace" => Next::Namespace,
        "context" => Next::Context,
        "kubeconfig" => Next::File,
        _ => {
            let values = arg.get_possible_values();
            Next::Words(
                values
                    .iter()
                    .map(|value| value.get_name().to_owned())
                    .collect(),
            )
        }
    }
}

fn target(word: &str) -> Next {
    match word.split_once('/') {
        Some((kind, _)) => match format!("{kind}/x").parse::<Target>() {
            Ok(target) => Next::Object(target.kind, kind.to_owned()),
            Err(_) => Next::Words(vec![]),
        },
        None => Next::Begins(
            Kind::all()
                .map(|kind| format!("{}/", kind.as_str()))
                .collect(),
        ),
    }
}

fn contexts() -> Vec<String> {
    let contexts = kubeconfig::read()
        .map(|config| config.contexts)
        .unwrap_or_default();
    contexts.into_iter().map(|context| context.name).collect()
}

/// What can be read of a line that may not be complete.
fn parsed(line: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Option<ArgMatches> {
    let command = Cli::command().ignore_errors(true);
    command.try_get_matches_from(line).ok()
}

/// The namespace that the line names so far.
fn namespace(matches: &ArgMatches) -> Option<&NamespaceName> {
    let command = matches.subcommand().map(|(_, matches)| matches);
    let levels = command.into_iter().chain([matches]);
    let mut named = levels.filter_map(|level| level.try_get_one("namespace").ok().flatten());
    named.next()
}

/// The names of objects, each behind a prefix.
async fn named(words: &[String], kind: Kind, prefix: &str) -> Vec<String> {
    let list = async {
        let line = ["kubectl-trylatest".to_owned()]
            .into_iter()
            .chain(words.iter().cloned());
        let matches = parsed(line)?;
        let args = ClusterArgs::from_arg_matches(&matches).ok()?;
        let cluster = Cluster::connect(&args, namespace(&matches)).await.ok()?;
        let resource = kind.resource();
        let api: Api<DynamicObject> = match kind {
            Kind::Namespace => Api::all_with(cluster.client.clone(), &resource),
            _ => Api::namespaced_with(cluster.client.clone(), cluster.namespace(), &resource),
        };
        let mut params = ListParams::default().limit(u32::try_from(OFFERS_MAX).ok()?);
        if kind == Kind::Pod && prefix.is_empty() {
            params = params.labels(keys::GATED);
        }
        Some(api.list_metadata(&params).await.ok()?.items)
    };
    let items = tokio::time::timeout(DEADLINE, list).await.ok().flatten();
    let names = items
        .into_iter()
        .flatten()
        .filter_map(|item| item.metadata.name);
    names.map(|name| format!("{prefix}{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(line: &str) -> Next {
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        next(&words)
    }

    fn words(next: Next) -> Vec<String> {
        match next {
            Next::Words(words) | Next::Begins(words) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn commands_options_and_values_are_offered() {
        let commands = words(next(&[]));
        assert!(commands.contains(&"status".to_owned()), "{commands:?}");
        assert!(!commands.contains(&"__complete".to_owned()), "{commands:?}");
        assert_eq!(words(after("--context x ")), commands);
        let options = words(after("check -"));
        for option in ["--fresh", "--timeout", "--namespace"] {
            assert!(options.contains(&option.to_owned()), "{options:?}");
        }
        assert_eq!(words(after("status -o ")), ["text", "json", "yaml"]);
        assert_eq!(after("status -n "), Next::Namespace);
        assert_eq!(after("-n "), Next::Namespace);
        let options = words(after("doctor -"));
        assert!(options.contains(&"--context".to_owned()), "{options:?}");
        assert!(!options.contains(&"--namespace".to_owned()), "{options:?}");
        assert_eq!(after("status --context "), Next::Context);
        assert_eq!(after("status --kubeconfig "), Next::File);
        assert_eq!(words(after("check deploy/a ")), Vec::<String>::new());
    }

    #[test]
    fn objects_are_offered_by_their_kind() {
        let kinds = words(after("check --fresh "));
        assert_eq!(kinds[0], "deployment/");
        assert_eq!(
            after("on sts/a"),
            Next::Object(Kind::StatefulSet, "sts".into())
        );
        assert_eq!(after("explain "), Next::Pod);
    }

    #[test]
    fn names_are_those_of_the_namespace_that_the_line_names() {
        for (line, name) in [
            ("kubectl-trylatest check -n shop deploy/", Some("shop")),
            ("kubectl-trylatest -n shop check deploy/", Some("shop")),
            ("kubectl-trylatest check deploy/", None),
            ("kubectl-trylatest doctor", None),
        ] {
            let matches = parsed(line.split(' ')).unwrap();
            let found = namespace(&matches).map(NamespaceName::as_str);
            assert_eq!(found, name, "{line}");
        }
    }

    #[tokio::test]
    async fn kubectl_is_answered_in_its_own_way() {
        let words = ["chec".to_owned()];
        assert_eq!(offers(&words).await, "check\n:4\n");
        let words = ["off".to_owned(), "cron".to_owned()];
        assert_eq!(offers(&words).await, "cronjob/\n:6\n");
    }
}
