// Reads dashboards with Grafana's own types: each field is known, has the right type, and is there if Grafana would
// fill it in otherwise. Prints what is wrong.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	types := cog.NewRuntime()
	types.RegisterPanelcfgVariant(stat.VariantConfig())
	types.RegisterPanelcfgVariant(table.VariantConfig())
	types.RegisterPanelcfgVariant(timeseries.VariantConfig())
	types.RegisterDataqueryVariant(prometheus.VariantConfig())
	wrong := false
	for _, path := range os.Args[1:] {
		for _, err := range check(path) {
			// If nothing is wrong, the types return an error without a text.
			if err != nil && err.Error() != "" {
				fmt.Fprintf(os.Stderr, "%s: %s\n", path, err)
				wrong = true
			}
		}
	}
	if wrong {
		os.Exit(1)
	}
}

func check(path string) []error {
	text, err := os.ReadFile(path)
	if err != nil {
		return []error{err}
	}
	// The strict reading leaves the panels out.
	var strict, board dashboard.Dashboard
	found := []error{strict.UnmarshalJSONStrict(text), json.Unmarshal(text, &board), board.Validate()}
	for _, panel := range board.Panels {
		if panel.Panel == nil {
			continue
		}
		// The fields of other kinds would pass unread.
		if _, known := cog.ConfigForPanelcfgVariant(panel.Panel.Type); !known {
			found = append(found, fmt.Errorf("%s: add its kind to e2e/go/grafana", panel.Panel.Type))
		}
	}
	return found
}
