//! The page that the gateway serves, in a browser.

use crate::process::pushgate;
use crate::tools::{folder, found, installed, program, root, run};

/// Runs a script that starts its own gateways and drives a browser.
#[track_caller]
fn drive(script: &str) {
    installed("node_modules/playwright-core");
    let script = root().join("tests/outside").join(script);
    let chromium = std::env::var_os("CHROMIUM").unwrap_or_else(|| found("chromium").into());
    let mut page = program("node");
    page.arg(script).arg(pushgate().get_program());
    run(page.env("PUSHGATE_TEST_NODE_MODULES", folder()).env("CHROMIUM", chromium));
}

#[test]
#[ignore = "needs Node.js, playwright-core and Chromium"]
fn the_page_works_in_a_browser() {
    drive("page.mjs");
}

#[test]
#[ignore = "needs Node.js, playwright-core, Chromium and openssl"]
fn the_page_works_over_tls() {
    drive("page_tls.mjs");
}

#[test]
#[ignore = "needs Node.js, playwright-core, Chromium and openssl"]
fn the_page_works_behind_a_proxy_with_tls_and_a_path_of_its_own() {
    drive("page_proxied.mjs");
}

#[test]
#[ignore = "needs Node.js, playwright-core and Chromium"]
fn the_page_asks_where_clients_connect_and_says_when_nothing_answers_there() {
    drive("page_apart.mjs");
}

#[test]
#[ignore = "needs Node.js, playwright-core and Chromium"]
fn messages_push_form_and_answers_are_on_one_screen_of_a_phone() {
    drive("page_phone.mjs");
}

#[test]
#[ignore = "needs Node.js, playwright-core and Chromium"]
fn the_page_comes_back_to_a_gateway_that_was_killed_and_does_not_claim_to_have_missed_nothing() {
    drive("page_killed.mjs");
}

#[test]
#[ignore = "needs Node.js, playwright-core and Chromium"]
fn the_page_gets_what_was_pushed_while_its_connection_was_cut_in_order_and_once() {
    drive("page_cut.mjs");
}

#[test]
#[ignore = "needs Node.js, playwright-core and Chromium"]
fn a_client_gives_up_a_frozen_gateway_and_goes_on_with_its_session() {
    drive("page_frozen.mjs");
}
