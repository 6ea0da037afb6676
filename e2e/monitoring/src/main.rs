//! `just monitoring`: writes the generated files, or checks them.

use std::fs;
use std::path::PathBuf;
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

    /// Draw the dashboards in docs/monitoring from this file and do nothing else: the test `monitoring` of node_agent
    /// writes target/monitoring.json
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    draw: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let Args { check, draw } = Args::parse();
    let sources = Sources::here()?;
    let files = match draw {
        Some(file) => {
            let answers = fs::read_to_string(&file);
            let answers = answers.with_context(|| format!("read {}", file.display()))?;
            sources.pictures(&answers)?
        }
        None => sources.generate()?,
    };
    let mut stale = false;
    for file in files {
        if fs::read_to_string(&file.path).is_ok_and(|text| text == file.text) {
            continue;
        }
        stale = true;
        let path = file.path.display();
        if check {
            eprintln!("{path} is not what its source makes: run `just monitoring`");
        } else {
            let folder = file.path.parent().map_or(Ok(()), fs::create_dir_all);
            let written = folder.and_then(|()| fs::write(&file.path, &file.text));
            written.with_context(|| format!("write {path}"))?;
            println!("wrote {path}");
        }
    }
    Ok(if check && stale {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
