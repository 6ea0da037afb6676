//! Who has the say.

use jiff::Timestamp;

use super::*;
use crate::pod::PodId;
use crate::settings::Settings;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn node(config: &str) -> NodeRules {
    NodeRules {
        try_for: 30 * SECOND,
        stall: 5 * SECOND,
        config: Config::parse(config).unwrap(),
        ..NodeRules::default()
    }
}

fn pod(settings: Settings) -> GatedPod {
    let id = PodId {
        namespace: "default".into(),
        name: "app".into(),
        uid: "1".into(),
    };
    GatedPod {
        settings,
        ..GatedPod::new(id, Timestamp::UNIX_EPOCH)
    }
}

fn image() -> ImageName {
    "reg.example/team/app".parse().unwrap()
}

fn rules(settings: Settings, config: &str) -> Rules {
    Rules::of(&pod(settings), Some(&image()), &node(config))
}

fn by(value: Duration, source: Source) -> Rule<Duration> {
    Rule { value, source }
}

#[test]
fn all_classes_but_one_allow_the_copy_by_default() {
    let rules = node("").by_default(None, None);
    for class in FailureClass::ALL {
        let allows = rules.allow_fallback_on(class).is_ok();
        assert_eq!(allows, class != FailureClass::Blocked, "{class}");
    }
    let network = rules_of_pod(&[FailureClass::Network], "");
    assert_eq!(network.allow_fallback_on(FailureClass::Network), Ok(()));
    assert_eq!(
        network.allow_fallback_on(FailureClass::NotFound),
        Err(Some(Source::Pod))
    );
}

fn rules_of_pod(classes: &[FailureClass], config: &str) -> Rules {
    let settings = Settings {
        fallback_on: Some(classes.iter().copied().collect()),
        ..Settings::default()
    };
    rules(settings, config)
}

#[test]
fn the_pod_comes_first_then_its_namespace_then_its_registry_then_the_defaults_then_the_flag() {
    let own = || Settings {
        timeout: Some(SECOND),
        max_age: Some(HOUR),
        ..Settings::default()
    };
    let registry = "registries: {reg.example: {try: 2s, max-age: 2h}}";
    let defaults = "defaults: {try: 3s, max-age: 3h}";
    let both = format!("{registry}\n{defaults}");
    let all = format!("{both}\nnamespaces: {{def*: {{try: 4s, max-age: 4h}}}}");
    let others = format!("{both}\nnamespaces: {{other: {{try: 4s, max-age: 4h}}}}");
    let administrator = Source::Administrator;
    for (settings, config, try_for, max_age) in [
        (own(), all.as_str(), 1, Some(by(HOUR, Source::Pod))),
        (
            Settings::default(),
            &all,
            4,
            Some(by(4 * HOUR, administrator)),
        ),
        (
            Settings::default(),
            &others,
            2,
            Some(by(2 * HOUR, administrator)),
        ),
        (own(), "", 1, Some(by(HOUR, Source::Pod))),
        (
            Settings::default(),
            &both,
            2,
            Some(by(2 * HOUR, administrator)),
        ),
        (
            Settings::default(),
            defaults,
            3,
            Some(by(3 * HOUR, administrator)),
        ),
        (Settings::default(), "", 30, None),
    ] {
        let rules = rules(settings, config);
        assert_eq!(rules.try_for, try_for * SECOND, "{config}");
        assert_eq!(rules.max_age, max_age, "{config}");
    }
}

/// The pull is shared: what one pod says cannot count for the others.
#[test]
fn stall_and_freshness_are_the_registrys_and_the_nodes() {
    let node = node("defaults: {freshness: 10s}\nregistries: {reg.example/team: {stall: 20s}}");
    let other: ImageName = "other.example/app".parse().unwrap();
    assert_eq!(node.stall_of(&image()), 20 * SECOND);
    assert_eq!(node.stall_of(&other), 5 * SECOND);
    assert_eq!(node.freshness_of(&image()), 10 * SECOND);
}

#[test]
fn no_pod_and_no_flag_exceeds_a_ceiling() {
    let config = "ceilings: {try: 10s, max-age: 2h}";
    for (asked, applies) in [(None, 10), (Some(60), 10), (Some(5), 5)] {
        let settings = Settings {
            timeout: asked.map(|asked| asked * SECOND),
            ..Settings::default()
        };
        assert_eq!(rules(settings, config).try_for, applies * SECOND);
    }
    // Who says nothing would take any copy: the administrator does not allow that, either.
    for (asked, applies) in [
        (None, by(2 * HOUR, Source::Administrator)),
        (Some(3), by(2 * HOUR, Source::Administrator)),
        (Some(1), by(HOUR, Source::Pod)),
    ] {
        let settings = Settings {
            max_age: asked.map(|asked| asked * HOUR),
            ..Settings::default()
        };
        assert_eq!(rules(settings, config).max_age, Some(applies));
    }
}

#[test]
fn of_the_classes_a_pod_lists_those_within_the_ceiling_count() {
    let config = "ceilings: {fallback-on: [network, timeout]}";
    let allowed = |rules: &Rules| {
        let all = FailureClass::ALL.into_iter();
        let allowed = all.filter(|class| rules.allow_fallback_on(*class).is_ok());
        allowed.collect::<Vec<_>>()
    };
    let silent = rules(Settings::default(), config);
    assert_eq!(
        allowed(&silent),
        [FailureClass::Network, FailureClass::Timeout]
    );
    let two = rules_of_pod(&[FailureClass::Network, FailureClass::Blocked], config);
    assert_eq!(allowed(&two), [FailureClass::Network]);
    assert_eq!(
        two.allow_fallback_on(FailureClass::Blocked),
        Err(Some(Source::Administrator))
    );
    assert_eq!(
        two.allow_fallback_on(FailureClass::Timeout),
        Err(Some(Source::Pod))
    );
}

#[test]
fn a_pod_that_asks_for_too_much_is_told() {
    let settings = Settings {
        timeout: Some(600 * SECOND),
        max_age: Some(48 * HOUR),
        fallback_on: Some([FailureClass::Network, FailureClass::Blocked].into()),
        same_digest: false,
    };
    let config = "ceilings: {try: 2m, max-age: 24h, fallback-on: [network]}";
    assert_eq!(
        node(config).exceeded_by(&pod(settings.clone())),
        [
            "trylatest.dev/timeout: 10m is more than the 2m that the administrator allows; the administrator's ceiling \
             applies",
            "trylatest.dev/max-age: 2d is more than the 1d that the administrator allows; the administrator's \
             ceiling applies",
            "trylatest.dev/fallback-on: the administrator does not allow the cached copy after blocked; the \
             administrator's ceiling applies",
        ]
    );
    assert_eq!(node("").exceeded_by(&pod(settings)), Vec::<String>::new());
}

#[test]
fn a_short_deadline_bounds_what_the_administrator_says_not_what_the_pod_says() {
    let mut short = pod(Settings::default());
    short.active_deadline = Some(40 * SECOND);
    let node = node("defaults: {try: 1m}");
    let of = |pod: &GatedPod| Rules::of(pod, Some(&image()), &node).try_for;
    assert_eq!(of(&short), 10 * SECOND);
    short.settings.timeout = Some(20 * SECOND);
    assert_eq!(of(&short), 20 * SECOND);
}

const CONFIG: &str = "registries: {reg.example: {try: 40s, fallback-on: [network]}}\n\
                      ceilings: {try: 1m, max-age: 24h}";

/// What is said of one rule: what it says, and where it comes from.
fn in_force(pod: &GatedPod, config: &str, key: &str) -> (String, String) {
    let rules = node(config).in_force(Some(pod), None, &image(), HOUR);
    assert_eq!(rules.len(), 6);
    let rule = rules.into_iter().find(|rule| rule.key == key).unwrap();
    (rule.value, rule.from)
}

#[test]
fn a_rule_that_the_pod_does_not_set_comes_from_the_configuration_or_a_flag() {
    let by_registry = "registries[reg.example]";
    for (config, key, value, from) in [
        ("", "try", "30s", "--try"),
        ("", "stall", "5s", "--stall"),
        ("", "freshness", "0s", "--freshness"),
        ("", "max-age", "none", "default"),
        ("", "keep", "1h", "--keep-for"),
        (CONFIG, "try", "40s", by_registry),
        (CONFIG, "max-age", "1d", "ceilings"),
        (CONFIG, "fallback-on", "network", by_registry),
    ] {
        let (is_value, is_from) = in_force(&pod(Settings::default()), config, key);
        assert_eq!(
            (is_value.as_str(), is_from.as_str()),
            (value, from),
            "{key}"
        );
    }
    let rules = node(CONFIG).in_force(None, Some("default"), &image(), HOUR);
    assert_eq!(rules[0].ceiling.as_deref(), Some("1m"));
    // A section that says less than the ceiling has the say.
    let rules = node("defaults: {max-age: 1h}\nceilings: {max-age: 24h}");
    let rules = rules.in_force(None, None, &image(), HOUR);
    assert_eq!(rules[3].from, "defaults");
}

#[test]
fn a_rule_of_the_pod_is_its_annotation_within_the_ceiling() {
    let timeout = |timeout| Settings {
        timeout: Some(timeout),
        ..Settings::default()
    };
    let max_age = Settings {
        max_age: Some(HOUR),
        ..Settings::default()
    };
    let fallback_on = Settings {
        fallback_on: Some([FailureClass::Timeout].into()),
        ..Settings::default()
    };
    let own = |key: &str| format!("the pod's trylatest.dev/{key}");
    for (settings, key, value, from) in [
        (timeout(HOUR), "try", "1m", "ceilings".to_owned()),
        (timeout(3 * SECOND), "try", "3s", own("timeout")),
        (max_age, "max-age", "1h", own("max-age")),
        (fallback_on, "fallback-on", "timeout", own("fallback-on")),
    ] {
        let (is_value, is_from) = in_force(&pod(settings), CONFIG, key);
        assert_eq!((is_value.as_str(), is_from), (value, from), "{key}");
    }
    let mut short = pod(Settings::default());
    short.active_deadline = Some(40 * SECOND);
    let share = "a quarter of the pod's activeDeadlineSeconds".to_owned();
    assert_eq!(in_force(&short, CONFIG, "try"), ("10s".to_owned(), share));
    short.settings = timeout(3 * SECOND);
    assert_eq!(in_force(&short, CONFIG, "try").1, own("timeout"));
}
