//! `just monitoring`: writes the generated files, or checks them.

use std::fs;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use trylatest_monitoring::Sources;

/// Make Grafana's dashboards, the Prometheus Operator's rules and the tables of docs/monitoring.md.
///
/// The sources are manifests/monitoring/dashboards/*.yaml and manifests/monitoring/rules.yaml.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Args {
    /// Write nothing; exit with 1 if a file is not as it should be
    #[arg(long)]
    check: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { check } = Args::parse();
    let mut stale = false;
    for file in Sources::here()?.generate()? {
        if fs::read_to_string(&file.path).is_ok_and(|text| text == file.text) {
            continue;
        }
        stale = true;
        let path = file.path.display();
        if check {
            eprintln!("{path} is not what its source makes: run `just monitoring`");
        } else {
            fs::write(&file.path, &file.text).with_context(|| format!("write {path}"))?;
            println!("wrote {path}");
        }
    }
    Ok(if check && stale {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
