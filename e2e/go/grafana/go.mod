// Grafana's types of dashboards.
module trylatest.dev/e2e/grafana

go 1.26.0

require github.com/grafana/grafana-foundation-sdk/go v0.0.22
