"""Small archives on the test server, with the layout of the published ones."""

import hashlib
import io
import tarfile

from file_server import FileServer

from hjepa_jax.data.download.catalog import Archive, Checksum


def packed(contents: dict[str, bytes]) -> bytes:
    """Returns a compressed tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def offered(server: FileServer, name: str, content: bytes) -> Archive:
    """Puts an archive on the server, and returns its row of the catalog."""
    server.files[f"/{name}.tar.gz"] = content
    checksum = Checksum("md5", hashlib.md5(content).hexdigest())
    return Archive(name, server.url(f"/{name}.tar.gz"), len(content), checksum, 1 << 20)
