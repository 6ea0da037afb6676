//! What is read, and what is refused.

use std::ffi::OsString;

use clap::CommandFactory;
use trylatest_core::config::Config;
use trylatest_core::rules::NodeRules;

use super::*;

const AGENT: [&str; 9] = [
    "trylatest",
    "agent",
    "--node-name=n",
    "--pod-name=p",
    "--pod-namespace=s",
    "--try=10s",
    "--stall=1m30s",
    "--freshness=10s",
    "--allow-unverified-fallback",
];

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn flags_are_read() {
    let Command::Agent(args) = Cli::parse_from(AGENT).command else {
        panic!("not the agent");
    };
    assert_eq!(args.try_for, Duration::from_secs(10));
    assert_eq!(args.stall, Duration::from_secs(90));
    assert_eq!(args.freshness, Duration::from_secs(10));
    assert!(args.allow_unverified_fallback);
    assert_eq!(args.port, 9776);
}

#[test]
fn what_no_flag_sets_is_what_the_planner_takes_for_the_default() {
    let Command::Agent(args) = Cli::parse_from(&AGENT[..5]).command else {
        panic!("not the agent");
    };
    assert_eq!(args.rules(Config::default()), NodeRules::default());
}

#[test]
fn a_pull_falls_back_after_what_a_pod_falls_back_after() {
    let parsed = |more: &[&str]| {
        let args = ["trylatest", "pull", "reg.example/app"].iter().chain(more);
        match Cli::try_parse_from(args).map(|cli| cli.command) {
            Ok(Command::Pull(args)) => Ok(args),
            Ok(_) => panic!("not a pull"),
            Err(error) => Err(error),
        }
    };
    let default = parsed(&[]).unwrap().fallback_on;
    for class in FailureClass::ALL {
        assert_eq!(
            default.contains(&class),
            class.falls_back_by_default(),
            "{class}"
        );
    }
    let args = parsed(&["--fallback-on=network,blocked", "--max-age=7d"]).unwrap();
    assert_eq!(
        args.fallback_on,
        [FailureClass::Network, FailureClass::Blocked]
    );
    assert_eq!(args.max_age, Some(Duration::from_hours(7 * 24)));
    for bad in [
        "--fallback-on=dns",
        "--max-age=old",
        "--timeout=0s",
        "--stall=fast",
    ] {
        assert_eq!(parsed(&[bad]).unwrap_err().exit_code(), 2, "{bad}");
    }
    let words = parsed(&["--fallback-on", "dns"]).unwrap_err().to_string();
    assert!(words.contains("there are network, timeout, "), "{words}");
    for flag in ["--max-age", "--timeout", "--stall"] {
        let words = parsed(&[flag, "-1h"]).unwrap_err().to_string();
        let start = format!("error: invalid value '-1h' for '{flag}");
        assert!(words.starts_with(&start), "{words}");
    }
}

fn bare(args: &[&str], variables: &[&str]) -> Option<GateArgs> {
    let owned = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    GateArgs::bare(owned(args).into_iter(), owned(variables).into_iter())
}

#[test]
fn a_bare_gate_is_what_clap_would_make_of_it() {
    let Command::Gate(args) = Cli::parse_from(["trylatest", "gate"]).command else {
        panic!("not the gate");
    };
    assert_eq!(bare(&["trylatest", "gate"], &["PATH"]), Some(args));
}

#[test]
fn a_gate_with_settings_is_read_by_clap() {
    let set = ["PATH", "TRYLATEST_PATIENCE"];
    assert_eq!(bare(&["trylatest", "gate"], &set), None);
    for args in [
        &["trylatest", "gate", "--help"],
        &["trylatest", "agent", "gate"],
    ] {
        assert_eq!(bare(args, &[]), None);
    }
    assert_eq!(bare(&["trylatest"], &[]), None);
}

#[test]
fn what_cannot_be_used_is_named_and_exits_2() {
    for bad in [
        "--stall=5",
        "--stall=0s",
        "--stall=25h",
        "--freshness=often",
        "--refresh-every=sometimes",
        "--refresh-every=1m",
        "--keep-for=400d",
        "--keep-bytes=many",
        "--disk-floor=101%",
        "--try=soon",
        "--address=here",
        "--port=70000",
        "--node-name=",
        "--log=a=b=c",
        "--log-format=xml",
    ] {
        let args = AGENT
            .iter()
            .copied()
            .filter(|a| a.split('=').next() != bad.split('=').next());
        let error = Cli::try_parse_from(args.chain([bad])).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{bad}");
        let option = bad.split('=').next().unwrap();
        assert!(error.to_string().contains(option), "{bad}: {error}");
    }
}

#[test]
fn an_invalid_duration_is_answered_with_one_that_is_valid() {
    let refused = |command: &[&str], flag: &str| {
        let line = ["trylatest"].iter().chain(command).chain([&flag]);
        Cli::try_parse_from(line).unwrap_err().to_string()
    };
    for (flag, words) in [
        (
            "--try=soon",
            "it must be more than 0 and at most 24h; write it like 5s or 1m30s",
        ),
        ("--stall=5", "the unit is missing; write 5s or 5m"),
        (
            "--freshness=25h",
            "it must be at most 24h; write it like 5s or 1m30s",
        ),
        (
            "--refresh-every=1m",
            "it must be 0, or at least 10m and at most 366d; write it like 6h or 1d",
        ),
        (
            "--keep-for=400d",
            "it must be at most 366d; write it like 14d or 12h",
        ),
    ] {
        let error = refused(&["agent"], flag);
        assert!(error.contains(words), "{flag}: {error}");
    }
    for (flag, words) in [
        (
            "--freshness=5s",
            "it must be at least 2m and at most 24h; write it like 2m or 5m",
        ),
        ("--freshness=5", "the unit is missing; write 5m"),
    ] {
        let error = refused(&["gate"], flag);
        assert!(error.contains(words), "{flag}: {error}");
    }
    let error = refused(&["pull", "app"], "--max-age=old");
    assert!(error.contains(": write it like 24h or 7d"), "{error}");
}

#[test]
fn what_no_pod_or_image_can_have_is_named_and_exits_2() {
    let check = ["config", "check", "f.yaml"];
    let namespaces = ["A B", "Team", "team_a", "-a", ""].map(|name| ("--namespace", name));
    let images = ["A B", "app:", ""].map(|name| ("--image", name));
    let explains = [("explain", "A B"), ("explain", "pod/"), ("explain", "")];
    let checks = namespaces.into_iter().chain(images);
    let lines = checks.map(|(flag, value)| [&check[..], &[flag, value]].concat());
    let lines = lines.chain(explains.map(|(command, name)| vec![command, name]));
    for line in lines.chain([vec!["explain", "app", "-n", "A B"]]) {
        let words = ["trylatest"].iter().chain(&line);
        let error = Cli::try_parse_from(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line:?}: {error}");
    }
    let line = "trylatest config check f.yaml --namespace team-a --image app";
    assert!(Cli::try_parse_from(line.split(' ')).is_ok());
}

#[test]
fn every_option_can_be_set_by_the_environment() {
    for command in ["agent", "gate"] {
        let cli = Cli::command();
        let command = cli.find_subcommand(command).unwrap();
        for arg in command.get_arguments().filter(|arg| arg.get_id() != "help") {
            assert!(arg.get_env().is_some(), "{}", arg.get_id());
        }
    }
}
