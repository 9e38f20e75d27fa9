//! The page that the gateway serves, in a browser.

use crate::process::GatewayProcess;
use crate::tools::{folder, found, installed, program, root, run};

#[test]
#[ignore = "needs Node.js, playwright-core and Chromium"]
fn the_page_works_in_a_browser() {
    let gateway = GatewayProcess::start::<&str>([]);
    installed("node_modules/playwright-core");
    let script = root().join("tests/outside/page.mjs");
    let url = format!("http://{}/", gateway.control);
    let chromium = std::env::var_os("CHROMIUM").unwrap_or_else(|| found("chromium").into());
    let mut page = program("node");
    page.arg(script).arg(url).env("PUSHGATE_TEST_NODE_MODULES", folder()).env("CHROMIUM", chromium);
    run(&mut page);
}
