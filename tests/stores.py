"""A web server for tests, which gives parts of files as object stores do, and can be told to fail."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Web:
    """A folder at an address."""

    folder: Path
    address: str = ""
    every: int = 0
    """Each so-many-th request is answered with `status`; 0: none is"""
    status: int = 503
    parts: bool = True
    """Whether it knows Range"""
    more: bytes = b""
    """What comes behind each file, or part of one"""
    requests: list[str] = field(default_factory=list)
    """Path of every request that was answered with a file"""
    count: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fails(self) -> bool:
        """Whether the next request does."""
        with self.lock:
            self.count += 1
            return bool(self.every) and self.count % self.every == 0


@contextmanager
def serving(folder: Path, **keys: object) -> Iterator[Web]:
    """A server in threads of this process, for the length of the block."""
    web = Web(folder, **keys)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            file = web.folder / self.path.lstrip("/").partition("?")[0]
            if web.fails() or not file.is_file():
                self.send_response(web.status if file.is_file() else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = file.read_bytes()
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            partly = found is not None and web.parts
            if partly:
                content = content[int(found[1]) : int(found[2]) + 1]
            content += web.more
            web.requests.append(self.path)
            self.send_response(206 if partly else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
