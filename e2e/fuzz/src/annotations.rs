//! What a pod's annotations say, and what an agent of any version has written there.

use std::collections::BTreeMap;

use jiff::Timestamp;
use trylatest_core::keys;
use trylatest_core::release::{Progress, Release};
use trylatest_core::settings::Settings;

pub(crate) fn read(text: &str) {
    let now = Timestamp::UNIX_EPOCH;
    let keys = [
        keys::TIMEOUT,
        keys::MAX_AGE,
        keys::FALLBACK_ON,
        keys::SAME_DIGEST,
    ];
    let values = text.split('\0');
    let annotations: BTreeMap<String, String> = keys
        .into_iter()
        .zip(values)
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let (settings, complaints) = Settings::parse(&annotations);
    if complaints.is_empty() {
        let again = Settings::parse(&annotations);
        assert_eq!(again, (settings, complaints));
    }
    if let Ok(release) = serde_json::from_str::<Release>(text) {
        let written = serde_json::to_string(&release).expect("what was read can be written");
        let again: Release = serde_json::from_str(&written).expect("and read again");
        assert_eq!(again, release);
        for container in release.containers.values() {
            let _ = container.describe(now);
        }
    }
    if let Ok(progress) = serde_json::from_str::<Progress>(text) {
        for container in progress.containers.values() {
            let _ = container.describe();
        }
    }
}
