//! An image's entry in the index, of any version or none.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| trylatest_index::fuzz::entry(bytes));
