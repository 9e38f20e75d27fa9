//! A config file: every mistake names its setting, and what is taken is the same after `print-config`.

#![no_main]

use std::cell::RefCell;
use std::fs;

use libfuzzer_sys::fuzz_target;
use pushgate::Loaded;
use tempfile::NamedTempFile;

thread_local! {
    static FILE: RefCell<NamedTempFile> = RefCell::new(NamedTempFile::new().expect("a file"));
}

fuzz_target!(|data: &[u8]| FILE.with_borrow(|file| {
    let load = |text: &[u8]| {
        fs::write(file.path(), text).expect("written");
        Loaded::new(Some(file.path()), [], [])
    };
    match load(data) {
        Ok(loaded) => {
            let printed = loaded.print();
            let again = load(printed.as_bytes()).unwrap_or_else(|invalid| panic!("{invalid}\n{printed}"));
            assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config));
        }
        Err(invalid) => {
            assert!(!invalid.mistakes().is_empty());
            assert!(invalid.to_string().lines().count() > invalid.mistakes().len());
        }
    }
}));
