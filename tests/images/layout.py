"""Writes an OCI layout with one image for each platform, made of the contents of Debian packages.

Called as `layout.py INTO PACKAGES LAYER…`: PACKAGES holds a folder of .deb files for each architecture, and a LAYER is
a list of package names. The same packages always give the same bytes: entries are sorted, and nothing tells the time.
"""

import gzip
import hashlib
import io
import json
import pathlib
import subprocess
import sys
import tarfile

UNUSED = ("./usr/share/doc/", "./usr/share/man/", "./usr/share/locale/", "./usr/share/lintian/", "./usr/share/info/")
CREATED = "2024-01-01T00:00:00Z"


def main(into, packages, *layers):
    layout = Layout(pathlib.Path(into))
    children = []
    for folder in sorted(pathlib.Path(packages).iterdir()):
        platform = {"os": "linux", "architecture": folder.name}
        if folder.name == "arm64":
            platform["variant"] = "v8"
        digest, size = image(layout, folder, platform, [layer.split() for layer in layers])
        children.append({"mediaType": MANIFEST, "digest": digest, "size": size, "platform": platform})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": children}
    digest, size = layout.add(json.dumps(index, indent=3).encode())
    layout.finish({"mediaType": INDEX, "digest": digest, "size": size})


INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def image(layout, folder, platform, layers):
    """Adds the image of one platform."""
    descriptors, diff_ids = [], []
    for packages in layers:
        tar = layer_tar(folder, packages)
        diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
        digest, size = layout.add(gzip.compress(tar, compresslevel=6, mtime=0))
        descriptors.append({"mediaType": LAYER, "digest": digest, "size": size})
    config = {
        "created": CREATED,
        **platform,
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": CREATED, "created_by": " ".join(packages)} for packages in layers],
    }
    digest, size = layout.add(json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": digest, "size": size},
        "layers": descriptors,
    }
    return layout.add(json.dumps(manifest, indent=3).encode())


def layer_tar(folder, packages):
    """One layer: what the packages would unpack, without their manuals."""
    entries = {}
    for package in packages:
        (path,) = folder.glob(f"{package}_*.deb")
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, stdout=subprocess.PIPE).stdout
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if not f"{member.name}/".startswith(UNUSED):
                    content = tar.extractfile(member).read() if member.isreg() else None
                    entries.setdefault(member.name.removeprefix("./"), (member, content))
    for name, target in links(packages):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, target
        entries.setdefault(name, (link, None))

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, (member, content) in sorted(entries.items()):
            if name in ("", "."):
                continue
            member.name, member.mtime, member.pax_headers = name, 0, {}
            if member.islnk():
                member.linkname = member.linkname.removeprefix("./")
            tar.addfile(member, io.BytesIO(content) if content is not None else None)
    return out.getvalue()


def links(packages):
    """The names that an installed package would have been given by its scripts."""
    if "busybox-static" in packages:
        return [(f"bin/{name}", "busybox") for name in ("sh", "echo", "cat", "ls", "uname", "sha256sum")]
    if "bash" in packages:
        return [("bin/sh", "bash")]
    if "python3.11-minimal" in packages:
        return [("usr/bin/python3", "python3.11")]
    return []


class Layout:
    """An OCI image layout: files named by their digest, and an index of what is tagged."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "blobs" / "sha256").mkdir(parents=True)

    def add(self, content):
        """Keeps content; returns its digest and its size."""
        name = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / "sha256" / name).write_bytes(content)
        return f"sha256:{name}", len(content)

    def finish(self, descriptor):
        """Tags the top."""
        tagged = {**descriptor, "annotations": {"org.opencontainers.image.ref.name": "v1"}}
        index = {"schemaVersion": 2, "manifests": [tagged]}
        (self.folder / "index.json").write_text(json.dumps(index))
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


if __name__ == "__main__":
    main(*sys.argv[1:])
