//! Compiles the proto files with `protox`, so that a build needs no `protoc`.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/pushgate");
    let served = protox::compile(["pushgate/v1/push.proto", "pushgate/v1/admin.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Served to grpcurl and its like by server reflection, which is to list only what the gateway serves.
    std::fs::write(out.join("descriptors.bin"), served.encode_to_vec())?;
    let all = ["pushgate/v1/push.proto", "pushgate/v1/admin.proto", "pushgate/v1/token_check.proto"];
    let all = protox::compile(all, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(all)?;
    Ok(())
}
