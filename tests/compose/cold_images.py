"""Makes small images that nobody has, as one OCI layout with the tags 1 to N: cold_images.py FOLDER N."""

import hashlib
import io
import json
import os
import pathlib
import sys
import tarfile

LAYER_BYTES = 1536 * 1024


def main(folder: pathlib.Path, count: int) -> None:
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def store(content: bytes, media_type: str) -> dict:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    index = {"schemaVersion": 2, "manifests": []}
    for tag in range(1, count + 1):
        layers = [store(layer(f"{tag}-{part}"), "application/vnd.oci.image.layer.v1.tar") for part in "ab"]
        config = {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": store(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        }
        entry = store(json.dumps(manifest).encode(), manifest["mediaType"])
        index["manifests"].append({**entry, "annotations": {"org.opencontainers.image.ref.name": str(tag)}})
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def layer(name: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo(f"cold-{name}")
        entry.size = LAYER_BYTES
        archive.addfile(entry, io.BytesIO(os.urandom(LAYER_BYTES)))
    return content.getvalue()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
