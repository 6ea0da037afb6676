//! Whatever a pod, a volume or an old version holds: nothing panics, and what it means is sane.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use trylatest_core::config::Config;
use trylatest_core::gate::{Gate, PATIENCE, Reading, Step, annotation};
use trylatest_core::image::ImageName;
use trylatest_core::keys;
use trylatest_core::release::{FRESHNESS, Progress, Release};
use trylatest_core::settings::Settings;
use trylatest_core::time::Now;

/// Text that has a chance to get past the first check.
fn near_names() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9._/:@ä -]{0,80}",
        "([a-z0-9]{1,5}[./:@_-]{1,2}){0,6}[a-z0-9]{0,70}",
        "\\PC{0,300}",
    ]
}

/// `any::<String>()` knows no control characters.
fn any_text() -> impl Strategy<Value = String> {
    let plain_or_control = prop_oneof![
        any::<char>(),
        "[\\x00-\\x1f]".prop_map(|c| c.chars().next().unwrap_or(' '))
    ];
    prop::collection::vec(plain_or_control, 0..40).prop_map(String::from_iter)
}

/// A document of the right shape with strange values in it.
fn documents() -> impl Strategy<Value = String> {
    let time = prop_oneof![
        Just("2026-01-01T12:00:00Z".to_owned()),
        Just("9999-12-30T22:00:00.999999999Z".to_owned()),
        Just("-009999-01-02T01:59:59Z".to_owned()),
        "[0-9TZ:.+-]{0,30}",
    ];
    let outcome = prop_oneof![
        Just("fresh".to_owned()),
        Just("refused".to_owned()),
        Just("fallback".to_owned()),
        "\\PC{0,10}",
    ];
    (time, outcome, any_text(), any::<i64>()).prop_map(|(time, outcome, text, number)| {
        let container = serde_json::json!({
            "image": text, "outcome": outcome, "class": "network", "message": text,
            "digest": text, "confirmed": time, "attempt": 1, "bytes": number, "note": text,
        });
        serde_json::json!({"time": time, "containers": {text: container}}).to_string()
    })
}

/// A configuration file in which most lines are right.
fn configurations() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        4 => prop::sample::select(vec![
            "defaults", "registries", "namespaces", "ceilings", "try", "stall", "freshness", "max-age", "fallback-on",
            "keep", "hold", "reg.example", "reg.example/team", "docker.io", "team-a", "team-*", "t*",
        ]).prop_map(str::to_owned),
        1 => "[a-z./:*&<-]{0,12}",
    ];
    let value = prop_oneof![
        "[0-9]{1,3}(s|m|h|d)",
        "\\[(network|timeout|blocked)(, [a-z-]{0,9}){0,2}\\]?",
        "[\\[\\]{}*&!|>%@:# \\t0-9a-z\"'-]{0,16}",
        Just(String::new()),
    ];
    let line = (0..4_usize, word, value)
        .prop_map(|(depth, word, value)| format!("{}{word}: {value}\n", "  ".repeat(depth)));
    prop_oneof![
        8 => prop::collection::vec(line, 0..12).prop_map(|lines| lines.concat()),
        1 => "\\PC{0,200}",
        1 => any_text(),
    ]
}

fn now() -> Now {
    Now {
        wall: "2026-01-01T12:00:01Z".parse().expect("a time"),
        up: Duration::ZERO,
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(3000)
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn an_image_name_is_read_to_a_fixed_point(text in near_names()) {
        if let Ok(name) = text.parse::<ImageName>() {
            prop_assert_eq!(name.as_str().parse::<ImageName>(), Ok(name));
        }
    }

    #[test]
    fn settings_complain_once_per_value(
        timeout in prop_oneof!["[0-9a-z. ]{0,12}", "\\PC{0,20}"],
        max_age in prop_oneof!["[0-9]{1,20}(ns|s|y)", "\\PC{0,20}"],
        classes in prop_oneof!["([a-z-]{1,12},){0,4}", "\\PC{0,20}"],
    ) {
        let annotations = BTreeMap::from([
            (keys::TIMEOUT.to_owned(), timeout),
            (keys::MAX_AGE.to_owned(), max_age),
            (keys::FALLBACK_ON.to_owned(), classes),
        ]);
        let (settings, complaints) = Settings::parse(&annotations);
        let unread = [
            settings.timeout.is_none(),
            settings.max_age.is_none(),
            settings.fallback_on.is_none(),
        ];
        prop_assert_eq!(complaints.len(), unread.into_iter().filter(|unread| *unread).count());
        prop_assert!(settings.timeout.is_none_or(|timeout| timeout > Duration::ZERO));
    }

    #[test]
    fn a_configuration_is_good_or_says_where_it_is_not(text in configurations()) {
        // YAML ends a line with CR, with LF, or with both.
        let lines = text.matches(['\r', '\n']).count() as u64 + 1;
        match Config::parse(&text) {
            Ok(config) => {
                let name: ImageName = "reg.example/team/app".parse().expect("a name");
                let stall = config.find(None, Some(&name), |section| section.stall);
                prop_assert!(stall.is_none_or(|stall| stall > Duration::ZERO));
                // A namespace changes nothing that pods of several share.
                let in_team = config.find(Some("team-a"), Some(&name), |section| section.stall);
                prop_assert_eq!(in_team, stall);
                for rule in config.resolved(Some("team-a"), Some(&name)) {
                    prop_assert!(rule.value.is_some() == rule.from.is_some(), "{:?}", rule);
                }
                prop_assert_eq!(config.changes(&config), Vec::<String>::new());
            }
            Err(invalid) => {
                prop_assert!(!invalid.problems.is_empty());
                for problem in &invalid.problems {
                    prop_assert!(problem.line <= lines, "{} of {} lines", problem, lines);
                }
            }
        }
    }

    #[test]
    fn a_value_comes_back_as_the_kubelet_quotes_it(value in any_text()) {
        let quoted: String = value.chars().map(quoted).collect();
        let file = format!("first=\"1\"\nkey=\"{quoted}\"\nlast=\"\"");
        prop_assert_eq!(annotation(&file, "key"), Some(value));
    }

    #[test]
    fn a_gate_survives_its_file(file in prop_oneof![
        "\\PC{0,200}",
        "trylatest.dev/released=\"?[\\\\xuU0-9a-f\"]{0,40}\"?",
    ]) {
        let _ = annotation(&file, keys::RELEASED);
        let _ = annotation(&file, "");
    }

    #[test]
    fn only_a_near_release_ends_the_wait(text in documents()) {
        let reading = Reading {
            released: serde_json::from_str::<Release>(&text).ok(),
            progress: serde_json::from_str::<Progress>(&text).ok(),
        };
        let mut gate = Gate::new(now(), PATIENCE, FRESHNESS);
        let (lines, step) = gate.observe(now(), &reading);
        let near = |time: Timestamp| {
            now().wall.duration_since(time).abs() <= SignedDuration::from_mins(2)
        };
        let released = reading.released.is_some_and(|release| near(release.time));
        prop_assert_eq!(matches!(step, Step::Open | Step::Refuse), released);
        // What others wrote does not make a second line of the gate's log.
        prop_assert!(lines.iter().all(|line| !line.contains(['\n', '\r', '\u{1b}'])), "{:?}", lines);
    }
}

/// A character as Go's `%q` writes it.
fn quoted(c: char) -> String {
    match c {
        '"' | '\\' => format!("\\{c}"),
        '\n' => "\\n".to_owned(),
        '\u{7}' => "\\a".to_owned(),
        c if u32::from(c) < 0x80 && c.is_control() => format!("\\x{:02x}", u32::from(c)),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c if u32::from(c) > 0xffff => format!("\\U{:08x}", u32::from(c)),
        c => c.to_string(),
    }
}
