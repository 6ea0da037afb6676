//! The administrator's configuration.

use trylatest_core::config::Config;

pub(crate) fn read(text: &str) {
    match Config::parse(text) {
        Ok(config) => {
            assert_eq!(Config::parse(text).as_ref(), Ok(&config));
            assert!(config.changes(&config).is_empty());
        }
        Err(invalid) => assert!(invalid.summary(1024).len() <= 1024),
    }
}
