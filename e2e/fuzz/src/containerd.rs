//! What containerd, a registry's words in it, and the kubelet say.

pub(crate) fn read(bytes: &[u8]) {
    trylatest_containerd::fuzz::documents(bytes);
    let Some((code, message)) = bytes.split_first() else {
        return;
    };
    if let Ok(message) = std::str::from_utf8(message) {
        for failure in trylatest_containerd::fuzz::failures(i32::from(*code), message) {
            assert!(!failure.message.contains(['\n', '\r', '\u{1b}']));
            assert!(failure.message.len() <= 1024);
        }
    }
}
