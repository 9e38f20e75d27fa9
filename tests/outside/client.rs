//! The client module that the gateway serves, by itself: its behaviour in Node.js, its types in TypeScript.

use crate::tools::{installed, program, root, run, tool};

#[test]
#[ignore = "needs Node.js"]
fn the_client_module_keeps_its_promises() {
    let told = run(program("node").args(["--test", "tests/outside/client.test.mjs"]).current_dir(root()));
    assert!(told.contains("fail 0") && !told.contains("pass 0"), "{told}");
}

#[test]
#[ignore = "needs TypeScript"]
fn the_types_of_the_client_module_fit_an_application() {
    let check = |more: &[&str]| {
        let mut compiler = tool("node_modules/.bin/tsc");
        compiler.args(["--noEmit", "--strict", "--exactOptionalPropertyTypes", "--target", "es2022"]);
        run(compiler.args(["--module", "nodenext"]).args(more).current_dir(root()));
    };
    check(&["--lib", "es2022,dom", "--types", "", "tests/outside/client.mts"]);
    // In Node.js there are no types of a browser.
    let types = installed("node_modules/@types/node");
    let types = types.parent().expect("a path in a folder").to_str().expect("a path in UTF-8");
    check(&["--lib", "es2022", "--typeRoots", types, "--types", "node", "src/server/client.d.ts"]);
}
