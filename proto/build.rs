//! Compiles the .proto files without protoc, keeping their comments for reflection.

use std::error::Error;
use std::path::PathBuf;

/// What operators, SDKs and the command use; and the types that errors carry as their details, which no file names.
const PUBLIC: [&str; 15] = [
    "entrepot/v1/access_keys.proto",
    "entrepot/v1/answers.proto",
    "entrepot/v1/damaged_objects.proto",
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
    "google/rpc/error_details.proto",
    "google/rpc/status.proto",
];

/// What nodes and the control plane say to each other.
const INTERNAL: [&str; 1] = ["entrepot/node/v1/nodes.proto"];

/// What the feature `future-release` adds: to a message, a field like one that it has.
const FUTURE: [(&str, &str, &str); 2] =
    [("Event", "config_cached", "config_noted"), ("SnapshotRule", "rule_id", "label")];

fn main() -> Result<(), Box<dyn Error>> {
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_imports(true).include_source_info(true);
    compiler.open_files(PUBLIC)?;
    write("public_descriptors.bin", &compiler)?;
    compiler.open_files(INTERNAL)?;
    write("descriptors.bin", &compiler)?;
    let mut files = compiler.file_descriptor_set();
    if std::env::var_os("CARGO_FEATURE_FUTURE_RELEASE").is_some() {
        // No comments, since what is added has none.
        files.file.iter_mut().for_each(|file| file.source_code_info = None);
        for message in files.file.iter_mut().flat_map(|file| &mut file.message_type) {
            let added_to = message.name().to_owned();
            for (_, like, name) in FUTURE.iter().filter(|(message, ..)| *message == added_to) {
                let like = message.field.iter().find(|field| field.name() == *like).ok_or("a field is gone")?;
                let mut field = like.clone();
                (field.name, field.json_name, field.number) = (Some((*name).to_owned()), None, Some(1000));
                message.field.push(field);
            }
        }
    }
    tonic_prost_build::configure()
        .codec_path("crate::codec::ReadingCodec")
        .bytes(".entrepot.node.v1.ReportEventsRequest")
        .compile_fds(files)?;

    for folder in ["entrepot", "google", "build.rs"] {
        println!("cargo:rerun-if-changed={folder}");
    }
    Ok(())
}

/// Writes all files that are open so far, in the form that keeps the annotations of messages and fields.
fn write(name: &str, compiler: &protox::Compiler) -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    Ok(std::fs::write(folder.join(name), compiler.encode_file_descriptor_set())?)
}
