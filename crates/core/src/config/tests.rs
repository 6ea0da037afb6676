//! What a file may say, and what is said about one that is wrong.

use super::*;
use crate::image::ImageName;

const SECOND: Duration = Duration::from_secs(1);

fn parse(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|error| panic!("{error}\nin\n{text}"))
}

/// The problems of a file, one line each.
fn problems(text: &str) -> Vec<String> {
    let invalid = Config::parse(text).unwrap_err();
    invalid.problems.iter().map(Problem::to_string).collect()
}

const WHOLE: &str = "\
# What applies to every image.
defaults:
  try: 30s
  stall: 5s
  freshness: 0s
  max-age: 720h
  fallback-on: [network, timeout]
registries:
  registry.example.com:
    stall: 20s
  registry.example.com/team/: {try: 60s, freshness: 1m, keep: 30d}
namespaces:
  team-a: {try: 90s}
  team-*: {max-age: 24h, fallback-on: [network]}
ceilings:
  try: 2m
  max-age: 720h
  fallback-on:
    - network
    - timeout
    - server-error
";

#[test]
fn a_whole_file_is_read() {
    let config = parse(WHOLE);
    let entries: Vec<String> = config
        .entries()
        .into_iter()
        .map(|(place, value)| format!("{place} {value}"))
        .collect();
    assert_eq!(
        entries,
        [
            "ceilings.fallback-on network, timeout, server-error",
            "ceilings.max-age 30d",
            "ceilings.try 2m",
            "defaults.fallback-on network, timeout",
            "defaults.freshness 0s",
            "defaults.max-age 30d",
            "defaults.stall 5s",
            "defaults.try 30s",
            "namespaces[team-*].fallback-on network",
            "namespaces[team-*].max-age 1d",
            "namespaces[team-a].try 1m 30s",
            "registries[registry.example.com/team].freshness 1m",
            "registries[registry.example.com/team].keep 30d",
            "registries[registry.example.com/team].try 1m",
            "registries[registry.example.com].stall 20s",
        ]
    );
}

#[test]
fn a_file_that_says_nothing_is_valid() {
    for text in [
        "",
        "\n\n",
        "# nothing yet\n",
        "---\n",
        "{}",
        "defaults:\nregistries:\nnamespaces:\nceilings:\n",
        "namespaces: {team-*: }",
        "registries: {registry.example.com: }",
    ] {
        assert_eq!(parse(text).entries(), BTreeMap::new(), "{text:?}");
    }
}

#[test]
fn the_longest_prefix_that_says_something_wins() {
    let config = parse(
        "
defaults: {try: 1s, stall: 1s}
registries:
  Reg.Example: {try: 2s, stall: 2s}
  reg.example/team: {try: 3s}
  reg.example/team/app: {try: 4s}
  reg.example:5000: {try: 5s}
  docker.io/library: {try: 6s}
",
    );
    for (image, try_for, stall) in [
        ("reg.example/team/app:v1", 4, 2),
        ("reg.example/team/app/part", 4, 2),
        ("reg.example/team/apps", 3, 2),
        ("reg.example/team", 3, 2),
        ("reg.example/teams/app", 2, 2),
        ("reg.example:5000/team/app", 5, 1),
        ("other.example/team/app", 1, 1),
        ("nginx", 6, 1),
        ("REG.example/team/app", 4, 2),
        ("my/nginx", 1, 1),
    ] {
        let name: ImageName = image.parse().unwrap();
        let found = |rule: fn(&Section) -> Option<Duration>| config.find(None, Some(&name), rule);
        assert_eq!(found(|s| s.try_for), Some(try_for * SECOND), "{image}");
        assert_eq!(found(|s| s.stall), Some(stall * SECOND), "{image}");
    }
    assert_eq!(config.find(None, None, |s| s.try_for), Some(SECOND));
}

#[test]
fn a_namespace_has_the_say_before_a_registry() {
    let config = parse(
        "
defaults: {try: 1s}
registries: {reg.example: {try: 2s, max-age: 2h}}
namespaces:
  t*: {try: 3s, max-age: 3h}
  team-*: {try: 4s}
  team-a: {try: 5s}
",
    );
    let name: ImageName = "reg.example/app".parse().unwrap();
    for (namespace, try_for, max_age) in [
        (Some("team-a"), 5, 3),
        (Some("team-ab"), 4, 3),
        (Some("team-b"), 4, 3),
        (Some("team"), 3, 3),
        (Some("other"), 2, 2),
        (None, 2, 2),
    ] {
        let found =
            |rule: fn(&Section) -> Option<Duration>| config.find(namespace, Some(&name), rule);
        assert_eq!(
            found(|s| s.try_for),
            Some(try_for * SECOND),
            "{namespace:?}"
        );
        assert_eq!(
            found(|s| s.max_age),
            Some(max_age * 3600 * SECOND),
            "{namespace:?}"
        );
    }
}

#[test]
fn a_namespace_cannot_set_what_its_pods_share_with_others() {
    let found = problems(
        "\
defaults: {hold: none}
registries: {reg.example: {hold: none}}
namespaces:
  team-a: {stall: 5s, freshness: 1m, keep: 1d, hold: none, trye: 5s}
  team-b:
    try: 3m
  team-b: {}
  '*': {}
  Team: {}
namespace: {}
ceilings: {keep: 1d, try: 2m}
",
    );
    let hold = "pods are held by admission, which cannot read this file; label the namespace with trylatest.dev/hold";
    let below = "it belongs under defaults or registries";
    assert_eq!(
        found,
        [
            format!("line 1, column 12: defaults.hold: {hold}"),
            format!("line 2, column 28: registries[reg.example].hold: {hold}"),
            format!(
                "line 4, column 12: namespaces[team-a].stall: {below}: pods of several namespaces share a pull"
            ),
            format!(
                "line 4, column 23: namespaces[team-a].freshness: {below}: pods of several namespaces share a pull"
            ),
            format!(
                "line 4, column 38: namespaces[team-a].keep: {below}: pods of several namespaces share a copy"
            ),
            format!("line 4, column 48: namespaces[team-a].hold: {hold}"),
            "line 4, column 60: namespaces[team-a].trye: unknown key; did you mean \"try\"?".to_owned(),
            "line 6, column 10: namespaces[team-b].try: it is more than 2m, the ceiling in line 11".to_owned(),
            "line 7, column 3: namespaces[team-b]: it is in line 5 already".to_owned(),
            "line 8, column 3: namespaces: \"*\" is not a namespace: for all namespaces, write the rule under \
             defaults"
                .to_owned(),
            "line 9, column 3: namespaces: \"Team\" is not a namespace: write a name of lowercase letters, digits and \
             -, or its beginning with a *, as in team-*"
                .to_owned(),
            "line 10, column 1: namespace: unknown key; did you mean \"namespaces\"?".to_owned(),
            format!("line 11, column 12: ceilings.keep: {below}: no pod can set it"),
        ]
    );
}

#[test]
fn copies_are_kept_for_a_time_or_not_at_all() {
    let keep = |text: &str| parse(&format!("defaults: {{keep: {text}}}")).defaults.keep;
    for (text, time) in [
        ("30d", 30 * 24 * 3600),
        ("0s", 0),
        ("0", 0),
        ("'0'", 0),
        ("off", 0),
        ("'off'", 0),
    ] {
        assert_eq!(keep(text), Some(time * SECOND), "{text}");
    }
    assert_eq!(
        problems("defaults: {keep: 367d}\nregistries: {reg.example: {keep: ever}}"),
        [
            "line 1, column 18: defaults.keep: invalid duration \"367d\": it must be at most 366d; write it like 14d or \
             12h",
            "line 2, column 34: registries[reg.example].keep: invalid duration \"ever\": it must be at most 366d; write \
             it like 14d or 12h",
        ]
    );
    assert_eq!(
        problems("defaults: {keep-for: 1d, try: 0}"),
        [
            "line 1, column 12: defaults.keep-for: unknown key; did you mean \"keep\"?",
            "line 1, column 31: defaults.try: invalid duration \"0\": it must be more than 0 and at most 24h; write it \
             like 5s or 1m30s",
        ]
    );
}

#[test]
fn what_is_no_duration_says_what_to_write() {
    let invalid = |text: &str| {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{found:?}");
        let (_, words) = found[0].split_once(": invalid duration").unwrap();
        words.to_owned()
    };
    for (rule, words) in [
        (
            "freshness: off",
            "; write 0s to ask the registry for each pod",
        ),
        (
            "freshness: 'No'",
            "; write 0s to ask the registry for each pod",
        ),
        (
            "freshness: false",
            "; write 0s to ask the registry for each pod",
        ),
        (
            "max-age: never",
            "; leave this line out if copies may have any age",
        ),
        ("keep: none", "; write off to keep no copies"),
        (
            "try: off",
            "; it cannot be switched off; the maximum is 24h",
        ),
        (
            "stall: disabled",
            "; it cannot be switched off; the maximum is 24h",
        ),
        ("stall: 5", " \"5\": the unit is missing; write 5s or 5m"),
        (
            "try: '90'",
            " \"90\": the unit is missing; write 90s or 90m",
        ),
        (
            "try: 1.5",
            " \"1.5\": the unit is missing; write 1.5s or 1.5m",
        ),
        (
            "try: -5",
            " \"-5\": it must be more than 0 and at most 24h; write it like 5s or 1m30s",
        ),
        (
            "try: true",
            " \"true\": it must be more than 0 and at most 24h; write it like 5s or 1m30s",
        ),
        (
            "try: ''",
            " \"\": it must be more than 0 and at most 24h; write it like 5s or 1m30s",
        ),
    ] {
        assert_eq!(invalid(&format!("defaults: {{{rule}}}")), words, "{rule}");
    }
    assert_eq!(
        invalid("ceilings: {max-age: off}"),
        "; leave this line out if there is no ceiling"
    );
    assert_eq!(
        problems("defaults: {try: , stall: [5s]}"),
        [
            "line 1, column 15: defaults.try: a duration such as 5s or 1m30s belongs here, not nothing",
            "line 1, column 26: defaults.stall: a duration such as 5s or 1m30s belongs here, not a list",
        ]
    );
}

#[test]
fn what_applies_is_shown_with_what_says_so() {
    let config = parse(WHOLE);
    let name: ImageName = "registry.example.com/team/app".parse().unwrap();
    let shown = |namespace, image| -> Vec<String> {
        let resolved = config.resolved(namespace, image).into_iter();
        let words = resolved.map(|rule| {
            let from = rule.from.map(|place| place.to_string());
            let [value, from, ceiling] =
                [rule.value, from, rule.ceiling].map(|word| word.unwrap_or("-".into()));
            format!("{} {value} {from} {ceiling}", rule.key)
        });
        words.collect()
    };
    assert_eq!(
        shown(Some("team-a"), Some(&name)),
        [
            "try 1m 30s namespaces[team-a] 2m",
            "stall 20s registries[registry.example.com] -",
            "freshness 1m registries[registry.example.com/team] -",
            "max-age 1d namespaces[team-*] 30d",
            "fallback-on network namespaces[team-*] network, timeout, server-error",
            "keep 30d registries[registry.example.com/team] -",
        ]
    );
    let config = parse("ceilings: {try: 2m, max-age: 24h}");
    let rules = config.resolved(None, None);
    let [try_for, .., max_age, _, _] = &rules[..] else {
        panic!("{rules:?}");
    };
    assert_eq!((&try_for.value, try_for.from), (&None, None));
    assert_eq!(max_age.from, Some(Place::Ceilings));
}

#[test]
fn every_problem_is_named_with_its_place() {
    let found = problems(
        "\
defaults:
  tri: 30s
  stall: 0s
  timeout: 5s
  max-age: 30
registries:
  https://registry.example.com: {}
  registry.example.com:
    retries: 3
    try: soon
    try: 5s
  registry.example.com/: {}
  other.example: [stall]
ceilings:
  stall: 5s
  try: 48h
  fallback-on: [netwrok, dns, 5]
registry: {}
",
    );
    assert_eq!(
        found,
        [
            "line 2, column 3: defaults.tri: unknown key; did you mean \"try\"?",
            "line 3, column 10: defaults.stall: invalid duration \"0s\": it must be more than 0 and at most 24h; write it \
             like 5s or 1m30s",
            "line 4, column 3: defaults.timeout: unknown key; did you mean \"try\"?",
            "line 5, column 12: defaults.max-age: invalid duration \"30\": the unit is missing; write 30h or 30d",
            "line 7, column 3: registries: \"https://registry.example.com\" is not a registry: write it without a \
             scheme; did you mean \"registry.example.com\"?",
            "line 9, column 5: registries[registry.example.com].retries: unknown key; there are try, stall, freshness, \
             max-age, fallback-on, keep",
            "line 10, column 10: registries[registry.example.com].try: invalid duration \"soon\": it must be more \
             than 0 and at most 24h; write it like 5s or 1m30s",
            "line 11, column 5: registries[registry.example.com].try: it is in line 10 already",
            "line 12, column 3: registries[registry.example.com/]: it is in line 8 already",
            "line 13, column 18: registries[other.example]: a mapping belongs here, not a list",
            "line 15, column 3: ceilings.stall: it belongs under defaults or registries: no pod can set it",
            "line 16, column 8: ceilings.try: invalid duration \"48h\": it must be more than 0 and at most 24h; write it \
             like 5s or 1m30s",
            "line 17, column 17: ceilings.fallback-on: unknown failure class \"netwrok\"; did you mean \"network\"?",
            "line 17, column 26: ceilings.fallback-on: unknown failure class \"dns\"; there are network, timeout, \
             server-error, rate-limited, not-found, unauthorized, invalid, blocked, local, unknown",
            "line 17, column 31: ceilings.fallback-on: a failure class belongs here, not \"5\"",
            "line 18, column 1: registry: unknown key; did you mean \"registries\"?",
        ]
    );
}

#[test]
fn a_rule_above_its_ceiling_is_a_contradiction() {
    let found = problems(
        "\
ceilings: {try: 1m, max-age: 24h, fallback-on: [network]}
defaults:
  try: 61s
  max-age: 25h
  fallback-on: [network, timeout]
registries:
  reg.example: {try: 60s, max-age: 24h, fallback-on: [network]}
  reg.example/slow: {try: 2m}
",
    );
    assert_eq!(
        found,
        [
            "line 3, column 8: defaults.try: it is more than 1m, the ceiling in line 1",
            "line 4, column 12: defaults.max-age: it is more than 1d, the ceiling in line 1",
            "line 5, column 16: defaults.fallback-on: timeout not in the list, the ceiling in line 1",
            "line 8, column 27: registries[reg.example/slow].try: it is more than 1m, the ceiling in line 1",
        ]
    );
}

#[test]
fn what_is_no_yaml_is_named_where_it_breaks() {
    let deep = format!("{}{}", "[".repeat(30), "]".repeat(30));
    for (text, problem) in [
        (
            "defaults: {try: 5s\n",
            "line 1, column 11: invalid YAML: unclosed bracket '{'",
        ),
        (
            "defaults:\n\ttry: 5s\n",
            "line 2, column 2: invalid YAML: tabs disallowed within this context (block indentation)",
        ),
        (
            "a: b: c\n",
            "line 1, column 5: invalid YAML: mapping values are not allowed in this context",
        ),
        (
            "defaults: *nothing\n",
            "line 1, column 11: invalid YAML: alias references unknown anchor",
        ),
        (
            "a: 1\n---\nb: 2\n",
            "line 3, column 1: a second document begins here",
        ),
        (
            "? [a]\n: 5\n",
            "line 1, column 3: a name belongs here, not a list",
        ),
        (
            "~: 5\n",
            "line 1, column 1: a name belongs here, not nothing",
        ),
        (
            &deep,
            "line 1, column 17: it is nested too deeply, or too large",
        ),
    ] {
        assert_eq!(problems(text), [problem], "{text}");
    }
}

#[test]
fn a_manifest_is_no_configuration() {
    let manifest = "apiVersion: v1\nkind: ConfigMap\ndata: {config.yaml: ''}\n";
    assert_eq!(
        problems(manifest),
        [
            "line 1, column 1: this is a Kubernetes object; a configuration is what stands in its data"
        ]
    );
}

#[test]
fn a_rule_in_the_wrong_place_is_sent_to_the_right_one() {
    assert_eq!(
        problems("try: 5s\ndefault: {stall: 5s}\n"),
        [
            "line 1, column 1: try: it belongs under defaults, registries or namespaces",
            "line 2, column 1: default: unknown key; did you mean \"defaults\"?",
        ]
    );
}

#[test]
fn what_is_not_a_mapping_is_no_file() {
    for text in ["try", "5", "[try]", "yes"] {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("a mapping belongs here"), "{found:?}");
    }
}

#[test]
fn what_is_the_same_for_several_registries_is_written_once() {
    let config = parse(
        "
registries:
  one.example: &slow {stall: 20s, try: 1m}
  two.example: *slow
  three.example:
    <<: *slow
    try: 2m
",
    );
    let stall = |host: &str| config.registries.get(host).unwrap().stall;
    for host in ["one.example", "two.example", "three.example"] {
        assert_eq!(stall(host), Some(20 * SECOND), "{host}");
    }
    let three = config.registries.get("three.example").unwrap();
    assert_eq!(three.try_for, Some(120 * SECOND));
}

#[test]
fn a_huge_or_hostile_file_is_refused() {
    assert!(Config::parse(&"#".repeat(TEXT_MAX_BYTES + 1)).is_err());
    // Each line has ten of the line before.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..10 {
        let below = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb = format!("{bomb}a{n}: &a{n} [{below}]\n");
    }
    assert!(Config::parse(&bomb).is_err());
    let many: Vec<String> = (0..200).map(|n| format!("key{n}: 1\n")).collect();
    let invalid = Config::parse(&many.concat()).unwrap_err();
    assert_eq!((invalid.problems.len(), invalid.more), (50, 150));
    for most in [60, 299, 300, 301, 1024] {
        let summary = invalid.summary(most);
        assert!(summary.starts_with("line 1, column 1: key0"), "{summary}");
        assert!(summary.len() <= most, "{summary}");
        assert!(summary.ends_with(" more"), "{summary}");
    }
    let one = Config::parse("key: 1").unwrap_err();
    assert_eq!(one.summary(1024), one.problems[0].to_string());
    assert_eq!(one.summary(8), "line 1, ");
}

#[test]
fn a_change_is_told_by_its_place() {
    let before = parse("defaults: {try: 30s, stall: 5s}");
    let after = parse("defaults: {try: 1m}\nregistries: {reg.example: {stall: 20s}}");
    assert_eq!(
        before.changes(&after),
        [
            "defaults.stall: 5s is removed",
            "defaults.try: 30s becomes 1m",
            "registries[reg.example].stall: 20s",
        ]
    );
    assert_eq!(after.changes(&after), Vec::<String>::new());
}
