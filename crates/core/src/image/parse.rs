//! The grammar of image names, as containerd and the kubelet read them
//! (github.com/distribution/reference: `reference.go`, `normalize.go`, `regexp.go`).
//!
//! Written by hand instead of using the regular expression of `oci-spec`: with its compiled form the
//! agent took 30.6 MB of memory instead of 8.7, and it does not know IPv6 addresses. A test compares
//! the two.

/// Longest registry: the longest name of a host, and a port. The grammar has no bound, the node's
/// report needs one.
const REGISTRY_MAX: usize = 253 + 6;

/// Longest path of a repository.
const PATH_MAX: usize = 255;

/// Longest tag.
const TAG_MAX: usize = 128;

pub(super) const DEFAULT_REGISTRY: &str = "docker.io";
pub(super) const OLD_DEFAULT_REGISTRY: &str = "index.docker.io";
const OFFICIAL: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// The parts of a name, with what it leaves out filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    pub(super) registry: &'a str,
    /// Put before the path.
    pub(super) prefix: Option<&'static str>,
    pub(super) path: &'a str,
    pub(super) version: Version<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Version<'a> {
    Tag(&'a str),
    /// A tag beside a digest has no effect; containerd drops it.
    Digest(&'a str),
}

pub(super) fn parse(name: &str) -> Result<Parts<'_>, &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    if is_bare_digest(name) {
        return Err("it is an image ID");
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    let (registry, rest) = split_registry(rest);
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    // A name with an underscore is not a valid host, but the grammar accepts it as a part of the path.
    if !is_registry(registry) && !is_path_component(registry) {
        return Err("its registry is not a host with an optional port");
    }
    if registry.len() > REGISTRY_MAX {
        return Err("its registry has more than 259 characters");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("its repository has uppercase letters");
    }
    if !path.split('/').all(is_path_component) {
        return Err("its repository is not a path of lowercase words with single separators");
    }
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err("its tag is not a word of at most 128 characters");
    }
    let official = registry == DEFAULT_REGISTRY && !path.contains('/');
    let prefix = official.then_some(OFFICIAL);
    if path.len() + prefix.map_or(0, |prefix| prefix.len() + 1) > PATH_MAX {
        return Err("its repository has more than 255 characters");
    }
    let version = match digest {
        Some(digest) => Version::Digest(check_digest(digest)?),
        None => Version::Tag(tag.unwrap_or(DEFAULT_TAG)),
    };
    Ok(Parts {
        registry,
        prefix,
        path,
        version,
    })
}

/// The first part is a registry if it looks like one, and a part of the path otherwise.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest)) if is_taken_for_registry(first) => {
            let known = first == OLD_DEFAULT_REGISTRY;
            (if known { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    }
}

/// Whether the first part of a name looks like a registry.
pub(super) fn is_taken_for_registry(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

pub(super) fn is_registry(registry: &str) -> bool {
    // An IPv6 address stands in brackets, and only there a colon does not start the port.
    let (host, port) = match registry.strip_prefix('[').and_then(|r| r.split_once(']')) {
        Some((address, rest)) => {
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            (
                "",
                rest.strip_prefix(':').or((!rest.is_empty()).then_some("-")),
            )
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let host_is_good = registry.starts_with('[') || host.split('.').all(label);
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    host_is_good && port.is_none_or(digits)
}

/// Lowercase words, separated by `.`, `_`, `__` or any number of `-`.
pub(super) fn is_path_component(component: &str) -> bool {
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    word(first)
        && word(last)
        && bytes.split(word).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn check_digest(digest: &str) -> Result<&str, &'static str> {
    let (algorithm, hex) = digest.split_once(':').unwrap_or_default();
    let wanted = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err("its digest is of no known algorithm"),
    };
    if hex.len() != wanted || !hex.bytes().all(is_lowercase_hex) {
        return Err("its digest has the wrong length or letters");
    }
    Ok(digest)
}

/// The id of an image and not its name. The kubelet also takes the id's beginning, where the grammar
/// would see a repository called `sha256` with a tag.
fn is_bare_digest(name: &str) -> bool {
    match name.strip_prefix("sha256:") {
        Some(id) => !id.is_empty() && id.bytes().all(is_lowercase_hex),
        None => name.len() == 64 && name.bytes().all(is_lowercase_hex),
    }
}

fn is_lowercase_hex(b: u8) -> bool {
    b.is_ascii_digit() || (b'a'..=b'f').contains(&b)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use oci_spec::distribution::Reference;

    use super::*;
    use crate::image::ImageName;

    #[test]
    fn what_the_grammar_allows_and_forbids() {
        let long = "a".repeat(128);
        for good in [
            "a",
            "a/b/c",
            "a__b",
            "a---b.c_d",
            "A/b",
            "A.B/c",
            "localhost/a",
            "[::1]/a",
            "[2001:db8::1]:5000/a:b",
            "h.example:5000/a",
            "x-y.example/a:_.-",
            "index.docker.io/a",
            &format!("a:{long}"),
        ] {
            assert!(parse(good).is_ok(), "{good}: {:?}", parse(good));
        }
        for bad in [
            "a//b",
            "/a",
            "a/",
            "a___b",
            "a..b",
            "a._b",
            "-a",
            "a-",
            "a/B",
            "[::1/a",
            "[]/a",
            "[::1]x/a",
            "[::1]:/a",
            "h.example:/a",
            "h.example:x/a",
            "-h.example/a",
            "h-.example/a",
            "h..example/a",
            "a:ä",
            "ä",
            "a:.b",
            "a@b",
            "a@sha256:abc",
            "a@",
            "a@sha1:0123456789012345678901234567890123456789",
            &format!("a:{long}b"),
            &"0".repeat(64),
            &format!("sha256:{}", "0".repeat(64)),
            "sha256:31981ffa1e65",
            &"a/".repeat(130),
            &format!("{}example/a", "a.".repeat(130)),
        ] {
            assert!(parse(bad).is_err(), "{bad}: {:?}", parse(bad));
        }
    }

    #[test]
    fn a_tag_beside_a_digest_is_dropped_as_containerd_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let name: ImageName = format!("reg.example/app:v1@{digest}").parse().unwrap();
        assert_eq!(name.as_str(), format!("reg.example/app@{digest}"));
    }

    /// Where the library reads more than containerd does, or less: `A/b` has a registry there.
    fn is_read_differently(name: &str) -> bool {
        let upper = |part: &str| part.contains(|c: char| c.is_ascii_uppercase());
        !name.is_ascii()
            || name.contains(['[', '@'])
            || is_bare_digest(name)
            || name.split_once('/').is_some_and(|(first, _)| upper(first))
    }

    #[test]
    fn the_library_reads_the_same() {
        const SEEDS: [&str; 6] = [
            "nginx",
            "my/app:v1.2-rc_3",
            "127.0.0.1:5000/my/app:latest",
            "registry.example.com/team__a/app-b.c/d:v1",
            "localhost/a",
            "index.docker.io/library/nginx",
        ];
        const LETTERS: &[u8] = b"aZ09._-/:@ []\xc3\xa4";
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random % below as u64).unwrap()
        };
        let (mut read, mut refused) = (0, 0);
        for round in 0..20_000 {
            let mut name = SEEDS[round % SEEDS.len()].as_bytes().to_vec();
            for _ in 0..next(4) {
                let (at, letter) = (next(name.len()), LETTERS[next(LETTERS.len())]);
                match next(3) {
                    0 => name[at] = letter,
                    1 => name.insert(at, letter),
                    _ if name.len() > 1 => drop(name.remove(at)),
                    _ => {}
                }
            }
            let name = String::from_utf8_lossy(&name).into_owned();
            if is_read_differently(&name) {
                // It must not panic, whatever it says.
                let _ = name.parse::<ImageName>();
                continue;
            }
            let theirs = Reference::from_str(&name).ok().filter(|reference| {
                !reference
                    .repository()
                    .contains(|c: char| c.is_ascii_uppercase())
            });
            match (name.parse::<ImageName>(), theirs) {
                (Ok(ours), Some(theirs)) => {
                    read += 1;
                    assert_eq!(ours.as_str(), theirs.whole(), "{name}");
                    assert_eq!(ours.registry(), theirs.registry(), "{name}");
                }
                (Err(_), None) => refused += 1,
                (ours, theirs) => panic!("{name:?}: {ours:?}, {theirs:?}"),
            }
        }
        assert!(read > 2000 && refused > 2000, "{read} {refused}");
    }
}
