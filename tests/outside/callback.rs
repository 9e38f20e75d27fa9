//! A service in another language that checks tokens: the example of the README, run as it stands there.

use crate::process::{GatewayProcess, Process, pushgate};
use crate::readme;
use crate::tools::{Project, run, tool};
use crate::user::User;

/// The last line of the example, and one that takes a free port and says which.
const SERVES: &str = "ThreadingHTTPServer((\"127.0.0.1\", 8080), Check).serve_forever()";
const SERVES_SOMEWHERE: &str = "\
server = ThreadingHTTPServer((\"127.0.0.1\", 0), Check)
print(f\"http://127.0.0.1:{server.server_port}/\", flush=True)
server.serve_forever()";

#[test]
#[ignore = "needs Python"]
fn a_service_in_python_says_who_a_client_is() {
    let project = Project::new();
    let example = readme::example("token-service");
    assert!(example.contains(SERVES), "{example}");
    project.write("check.py", &example.replace(SERVES, SERVES_SOMEWHERE));
    let service = Process::start(tool("venv/bin/python").arg("check.py").current_dir(project.path()));
    let url = service.stdout_line("http://");
    let gateway = GatewayProcess::start(["--token-callback-url", url.trim()]);
    let mut ann = User::with("4f7c1a0e9d3b", &gateway);
    let address = format!("http://{}", gateway.control);
    let told = run(pushgate().args(["push", "ann", "mail", "hello", "--address", &address]));
    assert!(told.contains("accepted by 1 of 1"), "{told}");
    assert_eq!(ann.next(), "hello");
}
