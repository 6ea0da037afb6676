//! The one program of the test images, built by `rustc` alone into a static binary.
//!
//!     testapp            prints the file /version and waits
//!     testapp pause      waits
//!     testapp cat FILE   prints a file and ends
//!     testapp exit CODE  ends
//!
//! SIGTERM and SIGINT end it at once; as the first process of a container it would not notice
//! them otherwise.

use std::io::{Write as _, stdout};
use std::process::ExitCode;

// What every C library on Linux has; the values are those of all its architectures but MIPS.
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIG_IGN: usize = 1;

unsafe extern "C" {
    fn signal(signal: i32, handler: usize) -> usize;
    fn pause() -> i32;
    fn _exit(status: i32) -> !;
}

extern "C" fn end(_signal: i32) {
    // SAFETY: `_exit` may be called in a signal handler.
    unsafe { _exit(0) }
}

fn wait() -> ! {
    loop {
        // SAFETY: `pause` takes nothing and touches nothing.
        unsafe { pause() };
    }
}

fn main() -> ExitCode {
    let end: extern "C" fn(i32) = end;
    // SAFETY: the handler calls nothing but `_exit`; children that end are reaped by the kernel.
    unsafe {
        signal(SIGTERM, end as usize);
        signal(SIGINT, end as usize);
        signal(SIGCHLD, SIG_IGN);
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["pause"] => wait(),
        ["cat", file] => print(file),
        ["exit", code] => ExitCode::from(code.parse().unwrap_or(2)),
        _ => {
            print("/version");
            wait()
        }
    }
}

fn print(file: &str) -> ExitCode {
    let said = std::fs::read(file).and_then(|text| {
        let mut out = stdout().lock();
        out.write_all(&text)?;
        out.flush()
    });
    match said {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{file}: {error}");
            ExitCode::FAILURE
        }
    }
}
