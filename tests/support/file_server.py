"""An HTTP server on this machine, which can fail in the ways that servers and networks do."""

import contextlib
import dataclasses
import email.utils
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator


@dataclasses.dataclass
class FileServer:
    """Files by path, and the requests received.

    Attributes:
      files: content by path, '/a.tar.gz'.
      ranges: whether it sends parts of files.
      tags: whether it sends an ETag; otherwise the date of the last change alone.
      sized: whether it states the size of a file.
      ignores_if_range: whether it sends a part of whatever version it has.
      cut: the connection breaks after so many bytes of a body; one number per request, None for a
        whole body, which all requests after the last number get too.
      status: an error to answer with, by path.
      redirects: an address to redirect to, by path.
      headers: additional headers, by path.
      hold: if set, a body is sent once it is set.
      requests: path and headers of each request.
    """

    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    sized: bool = True
    ignores_if_range: bool = False
    cut: list[int | None] = dataclasses.field(default_factory=list)
    status: dict[str, int] = dataclasses.field(default_factory=dict)
    redirects: dict[str, str] = dataclasses.field(default_factory=dict)
    headers: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    hold: threading.Event | None = None
    requests: list[tuple[str, dict[str, str]]] = dataclasses.field(default_factory=list)
    port: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """Returns the address of a path."""
        return f"http://{host}:{self.port}{path}"

    def asked(self, header: str) -> list[str | None]:
        """Returns a header of each request."""
        return [headers.get(header) for _, headers in self.requests]


@contextlib.contextmanager
def serving() -> Iterator[FileServer]:
    """Yields a server that runs in a thread."""
    state = FileServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(state, self)

        def do_CONNECT(self) -> None:
            state.requests.append((self.path, dict(self.headers)))
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def answer(state: FileServer, handler: http.server.BaseHTTPRequestHandler) -> None:
    """Answers one request."""
    path = handler.path
    state.requests.append((path, dict(handler.headers)))
    handler.close_connection = True
    if path in state.redirects:
        handler.send_response(302)
        handler.send_header("Location", state.redirects[path])
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    code = state.status.get(path) or (None if path in state.files else 404)
    if code is not None:
        handler.send_error(code)
        return
    content = state.files[path]
    digest = hashlib.sha256(content)
    tag = f'"{digest.hexdigest()[:16]}"'
    date = email.utils.formatdate(int(digest.hexdigest()[:7], 16), usegmt=True)
    version = tag if state.tags else date
    start = 0
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    same = state.ignores_if_range or handler.headers.get("If-Range", version) == version
    if wanted and state.ranges and same:
        start = int(wanted[1])
        if start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    else:
        handler.send_response(200)
    if state.tags:
        handler.send_header("ETag", tag)
    handler.send_header("Last-Modified", date)
    if state.sized:
        handler.send_header("Content-Length", str(len(content) - start))
    for name, value in state.headers.get(path, {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    if state.hold is not None:
        state.hold.wait(60)
    cut = state.cut.pop(0) if state.cut else None
    handler.wfile.write(content[start:][:cut])
