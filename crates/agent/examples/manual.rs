//! Writes the man pages of `trylatest` and its completion scripts to a folder.
//!
//! The program itself has neither: it is shipped in an image without a shell, and every gate holds its pages in memory.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use clap::{CommandFactory as _, Parser};
use clap_complete::Shell;
use trylatest::args::Cli;

/// The program.
const NAME: &str = "trylatest";

/// The shells for which there is a script.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Writes the man pages of `trylatest`, one for each command, and completion scripts for bash, zsh and fish.
#[derive(Parser)]
struct Args {
    /// The folder to write to
    folder: PathBuf,
}

fn main() -> ExitCode {
    let Args { folder } = Args::parse();
    match write(&folder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: write to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut Cli::command(), NAME, folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_a_script() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let scripts = ["trylatest.bash", "_trylatest", "trylatest.fish"].map(read);
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let page = read(&format!("{NAME}-{name}.1"));
            assert!(page.contains(".SH OPTIONS"), "{name}");
            for script in &scripts {
                assert!(script.contains(name), "{name}");
            }
        }
    }
}
