#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stampede_fuzz::targets::route(bytes));
