"""A server on this machine that answers as badly as one wishes."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Shelf(ThreadingHTTPServer):
    """Files by path. Each connection sends at most the next of `cuts` bytes, where there is one, and breaks.

    ranges: whether it knows them. slow: a lock that is taken for each kilobyte. `asked` has the path and the first
    byte asked for of every request, `sent` the bytes of content that went out.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], ranges: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.ranges, self.cuts, self.asked, self.sent = files, ranges, [], [], 0
        self.headers: dict[str, dict[str, str]] = {}
        self.slow = threading.Semaphore(1 << 30)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    """What the shelf answers."""

    server: Shelf
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.answer(with_content=True)

    def answer(self, with_content: bool) -> None:
        shelf, path = self.server, self.path.partition("?")[0]
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and shelf.ranges else 0
        shelf.asked.append((path, start))
        content = shelf.files.get(path)
        if content is None or (start and start >= len(content)):
            self.begin(404 if content is None else 416, 0)
            return
        self.begin(206 if start else 200, len(content) - start, start)
        if with_content:
            self.send(content[start:])

    def begin(self, status: int, length: int, start: int = 0) -> None:
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + length - 1}/{start + length}")
        self.send_header("Content-Length", str(length))
        for name, value in self.server.headers.get(self.path.partition("?")[0], {}).items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, rest: bytes) -> None:
        shelf = self.server
        most = shelf.cuts.pop(0) if shelf.cuts else len(rest)
        for at in range(0, min(most, len(rest)), 1024):
            shelf.slow.acquire()
            piece = rest[at : min(at + 1024, most)]
            shelf.sent += len(piece)
            self.wfile.write(piece)
        if most < len(rest):
            self.close_connection = True

    def log_message(self, format: str, *arguments) -> None:
        pass


@contextmanager
def serving(files: dict[str, bytes], ranges: bool = True) -> Iterator[Shelf]:
    """A shelf that answers as long as it is needed."""
    with Shelf(files, ranges) as shelf:
        thread = threading.Thread(target=shelf.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield shelf
        finally:
            shelf.shutdown()
            thread.join()
