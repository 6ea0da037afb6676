//! Messages that nobody has thought of.

use proptest::prelude::*;
use tonic::{Code, Status};
use trylatest_core::outcome::FailureClass;

use super::pull_failure;

const SECRET: &str = "s3cr3tV4lu3s3cr3tV4lu3";

/// Pieces of real messages, put together at random.
fn messages() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("failed to resolve reference \"reg.example/app:latest\": ".to_owned()),
        Just("unexpected status from HEAD request to https://reg.example/v2/app: ".to_owned()),
        Just("pull access denied, repository does not exist ".to_owned()),
        Just("401 Unauthorized".to_owned()),
        Just("dial tcp 127.0.0.1:5000: connect: connection refused\n".to_owned()),
        Just("server message: ".to_owned()),
        Just("://".to_owned()),
        Just(": ".to_owned()),
        "\\PC{0,40}",
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn failure(code: Code, message: &str) -> trylatest_core::outcome::Failure {
    pull_failure(&Status::new(code, message))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn any_message_is_read_and_fits_a_line(message in messages(), code in 0..17_i32) {
        let failure = failure(Code::from(code), &message);
        prop_assert!(!failure.message.contains(['\n', '\r', '\u{1b}']), "{:?}", failure);
        prop_assert!(failure.message.len() <= 1024, "{}", failure.message.len());
    }

    /// What a registry writes behind a 401 does not make it anything else.
    #[test]
    fn no_words_hide_a_401(words in messages()) {
        let message = format!(
            "failed to pull and unpack image \"reg.example/app:latest\": failed to resolve reference \
             \"reg.example/app:latest\": unexpected status from HEAD request to \
             https://reg.example/v2/app/manifests/latest: 401 Unauthorized\n{words}"
        );
        prop_assert_eq!(failure(Code::Unknown, &message).class, FailureClass::Unauthorized);
    }

    #[test]
    fn secrets_go_whatever_stands_around_them(
        before in messages(),
        form in prop_oneof![
            Just("https://user:SECRET@reg.example/v2/"),
            Just("https://reg.example/token?service=x&token=SECRET"),
            Just("https://blobs.example/sha256?X-Amz-Signature=SECRET&x=y"),
            Just("Authorization: Bearer SECRET"),
            Just("\"access_token\":\"SECRET\""),
            Just("password=SECRET"),
            Just("password: SECRET"),
            Just("{\"token\": \"SECRET\"}"),
        ],
        after in "[ ,.;)\"'][a-zA-Z0-9 ]{0,20}",
    ) {
        // A message is cut when it is long: the secret must be hidden, not out of sight.
        let before: String = before.chars().take(60).collect();
        let message = format!("{before} {}{after}", form.replace("SECRET", SECRET));
        let shown = failure(Code::Unknown, &message).message;
        prop_assert!(!shown.contains(SECRET), "{}", shown);
    }
}
