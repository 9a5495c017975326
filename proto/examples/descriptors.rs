//! Prints the compiled .proto files without comments. `scripts/proto` compares changes with this.

use std::io::{self, Write as _};

use prost::Message as _;
use prost_types::FileDescriptorSet;

fn main() -> io::Result<()> {
    let mut set = FileDescriptorSet::decode(entrepot_proto::DESCRIPTORS).map_err(io::Error::other)?;
    for file in &mut set.file {
        file.source_code_info = None;
    }
    set.file.sort_by(|a, b| a.name().cmp(b.name()));
    io::stdout().lock().write_all(&set.encode_to_vec())
}
