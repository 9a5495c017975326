//! Compiles the .proto files without protoc, keeping their comments for reflection.

use std::path::PathBuf;

const FILES: [&str; 13] = [
    "entrepot/node/v1/nodes.proto",
    "entrepot/v1/access_keys.proto",
    "entrepot/v1/answers.proto",
    "entrepot/v1/fills.proto",
    "entrepot/v1/images.proto",
    "entrepot/v1/login_tokens.proto",
    "entrepot/v1/nodes.proto",
    "entrepot/v1/operations.proto",
    "entrepot/v1/principals.proto",
    "entrepot/v1/repositories.proto",
    "entrepot/v1/rules.proto",
    "entrepot/v1/templates.proto",
    "entrepot/v1/upstreams.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(FILES)?;
    let path = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("descriptors.bin");
    // This form keeps the fields' annotations, which the other one has no place for.
    std::fs::write(path, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        .bytes(".entrepot.node.v1.ReportEventsRequest")
        .compile_fds(compiler.file_descriptor_set())?;

    for folder in ["entrepot", "google", "build.rs"] {
        println!("cargo:rerun-if-changed={folder}");
    }
    Ok(())
}
