//! A registry's mirrors, as containerd's `hosts.toml` has them (containerd, docs/hosts.md).

use toml::{Table, Value};
use trylatest_core::doctor::{Finding, Severity};
use trylatest_core::text;

/// What is found in the file of one registry.
pub(super) fn findings(registry: &str, hosts: &str) -> Vec<Finding> {
    let table = match hosts.parse::<Table>() {
        Ok(table) => table,
        Err(error) => {
            let why = text::on_one_line(error.message());
            return vec![Finding::new(
                Severity::Error,
                "hosts-invalid",
                format!("{registry}: hosts.toml is not valid TOML: {why}"),
                "containerd cannot pull from this registry: correct the file.",
            )];
        }
    };
    let server = table
        .get("server")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let hosts = table.get("host").and_then(Value::as_table);
    let mut findings = Vec::new();
    for (host, settings) in hosts.into_iter().flatten() {
        findings.extend(of_host(registry, server, host, settings));
    }
    findings
}

fn of_host(registry: &str, server: &str, host: &str, settings: &Value) -> Vec<Finding> {
    let name = format!("{registry}: {}", text::on_one_line(host));
    if host.trim_end_matches('/') == server.trim_end_matches('/') {
        return vec![Finding::new(
            Severity::Warning,
            "mirror-is-server",
            format!("{name} is both the server and a [host]"),
            "While it fails, containerd asks it twice for everything. Name it as server only.",
        )];
    }
    let mut findings = Vec::new();
    if settings.get("dial_timeout").is_none() {
        findings.push(Finding::new(
            Severity::Warning,
            "mirror-without-dial-timeout",
            format!("{name} has no dial_timeout"),
            "If it cannot be reached, each connection to it costs 30 s before the next host is asked, and pods fall back \
                  although the registry answers. Set dial_timeout = \"1s\" (containerd 2.1 and later).",
        ));
    }
    let capabilities = settings.get("capabilities").and_then(Value::as_array);
    let resolves =
        capabilities.is_none_or(|all| all.iter().any(|one| one.as_str() == Some("resolve")));
    if resolves {
        findings.push(Finding::new(
            Severity::Info,
            "mirror-resolves",
            format!("{name} says what tags point to (capabilities has \"resolve\")"),
            "TryLatest believes it. If it caches tags for long, set capabilities = [\"pull\"]: then the registry says what a \
                  tag points to, and the mirror still serves the layers.",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(hosts: &str) -> Vec<&'static str> {
        let all = findings("registry.example", hosts);
        all.iter().map(|finding| finding.check).collect()
    }

    #[test]
    fn each_kind_of_mirror_is_found() {
        let mirror = |settings: &str| {
            checks(&format!(
                "server = \"https://registry.example\"\n[host.\"https://mirror.example\"]\n{settings}\n"
            ))
        };
        let good = "capabilities = [\"pull\"]\ndial_timeout = \"1s\"";
        assert!(mirror(good).is_empty());
        assert_eq!(mirror("dial_timeout = \"1s\""), ["mirror-resolves"]);
        let resolves = "capabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"1s\"";
        assert_eq!(mirror(resolves), ["mirror-resolves"]);
        let slow = "capabilities = [\"pull\"]";
        assert_eq!(mirror(slow), ["mirror-without-dial-timeout"]);
        let twice = "server = \"https://a.example\"\n[host.\"https://a.example/\"]\n";
        assert_eq!(checks(twice), ["mirror-is-server"]);
        assert_eq!(checks("server = \"https://a.example\""), [""; 0]);
        assert_eq!(checks("[host]\n"), [""; 0]);
    }

    #[test]
    fn a_broken_file_is_an_error_and_hostile_text_stays_on_one_line() {
        let broken = findings("registry.example", "server = ");
        assert_eq!(broken[0].severity, Severity::Error);
        assert_eq!(broken[0].what.lines().count(), 1);
        let hostile = findings("registry.example", "[host.\"a\\u001b[31m\\nb\"]\n");
        assert!(
            hostile[0]
                .what
                .starts_with("registry.example: a [31m b has"),
            "{hostile:?}"
        );
        for odd in [
            "host = 1",
            "[host]\na = 1",
            "server = 1",
            "[host.\"a\"]\ncapabilities = \"pull\"",
        ] {
            findings("registry.example", odd);
        }
    }
}
