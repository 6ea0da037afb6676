//! Queries, and the series that they name.

use std::collections::BTreeSet;

/// A query and where it stands.
#[derive(Clone, Debug)]
pub struct Query {
    /// The dashboard and panel, or the alert.
    pub place: String,
    /// PromQL; a dashboard's may have variables.
    pub text: String,
}

impl Query {
    /// The query as Grafana sends it: with this time in place of its own intervals, and these values of
    /// variables.
    pub fn filled(&self, interval: &str, variables: &[(&str, &str)]) -> String {
        let mut text = self.text.clone();
        for name in ["$__rate_interval", "$__interval", "$__range"] {
            text = text.replace(name, interval);
        }
        for (name, value) in variables {
            text = text.replace(&format!("${name}"), value);
        }
        text
    }

    /// The names of metrics in it.
    pub fn metrics(&self) -> BTreeSet<String> {
        selectors(&self.text)
            .map(|selector| selector.split('{').next().unwrap_or(selector).to_owned())
            .collect()
    }
}

/// How the names of the metrics begin of which queries may be made, and `up`, which Prometheus itself makes.
const PREFIXES: [&str; 2] = ["trylatest_", "process_"];

/// The selectors of series in a query, with their matchers and without ranges. A word is a metric's name if
/// it is `up` or begins as all metrics of the agent do, and is no label.
pub fn selectors(query: &str) -> impl Iterator<Item = &str> {
    let mut rest = query;
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(is_of_word)?;
            let word = &rest[start..];
            let end = word.find(|c| !is_of_word(c)).unwrap_or(word.len());
            let named = is_metric(&word[..end]);
            let end = end + matchers(&word[end..]);
            rest = &word[end..];
            if named {
                return Some(&word[..end]);
            }
        }
    })
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

fn is_metric(word: &str) -> bool {
    word == "up" || PREFIXES.iter().any(|prefix| word.starts_with(prefix))
}

/// The length of the matchers with which the text begins, with their braces; 0 if it does not.
fn matchers(text: &str) -> usize {
    if !text.starts_with('{') {
        return 0;
    }
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_have_their_matchers_and_no_range() {
        let query = r#"sum by (up_to) (rate(trylatest_a_total{x="}\"{", y=~"b|c"}[5m])) / on (node) up{job="j"} == 0 or trylatest_b"#;
        let found: Vec<_> = selectors(query).collect();
        let a = r#"trylatest_a_total{x="}\"{", y=~"b|c"}"#;
        assert_eq!(found, [a, r#"up{job="j"}"#, "trylatest_b"]);
        assert_eq!(selectors("vector(1)").count(), 0);
        assert_eq!(selectors("up{").collect::<Vec<_>>(), ["up{"]);
    }

    #[test]
    fn variables_and_intervals_are_filled_in() {
        let query = Query {
            place: String::new(),
            text: r#"rate(trylatest_a{node="$node"}[$__rate_interval])"#.to_owned(),
        };
        let filled = query.filled("30s", &[("node", "n")]);
        assert_eq!(filled, r#"rate(trylatest_a{node="n"}[30s])"#);
        assert_eq!(query.metrics(), BTreeSet::from(["trylatest_a".to_owned()]));
    }
}
