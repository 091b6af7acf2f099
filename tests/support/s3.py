"""A real S3-protocol server in a process of its own, and a proxy before it that breaks requests on the way."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sports_ray.store.storage import Storage, open_storage

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
BUCKET = "bucket"
_SERVER = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
ANSWERS = {
    "500": b"HTTP/1.1 500 Internal Server Error\r\n",
    "503": b"HTTP/1.1 503 Slow Down\r\n",
}
FAULTS = ("500", "503", "cut", "lost", "silent", "slow")
"""An error as answer; the connection cut in the middle of the upload; done, but the answer lost; no answer; a late one."""
Choose = Callable[[str, str], str | None]


@contextmanager
def s3_server() -> Iterator[int]:
    """Starts a server with one empty bucket, on a free port of this host; yields the port."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=pipe, stdout=pipe, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT"), timeout=30)
        yield port
    finally:
        process.kill()
        process.communicate()


def address(port: int, prefix: str, **query: object) -> str:
    """s3:// address of a prefix on the server (or proxy) at a port of this host."""
    named = {"endpoint_override": f"127.0.0.1:{port}", "scheme": "http", "region": "us-east-1", **query}
    return f"s3://{BUCKET}/{prefix}?" + "&".join(f"{name}={value}" for name, value in named.items())


def download(uri: str, folder: Path) -> Path:
    """Copies all objects below an address into a local folder."""
    _download(open_storage(uri), "", folder)
    return folder


def _download(storage: Storage, below: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in storage.list(below):
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir:
            _download(storage, path, folder / entry.name)
        else:
            (folder / entry.name).write_bytes(storage.read(path))


@dataclass(frozen=True)
class Request:
    """What the proxy saw, and what it did to it."""

    method: str
    path: str
    fault: str | None


class FaultyProxy:
    """TCP proxy for HTTP, a request a connection. `choose(method, path)` names the fault of each request, or None."""

    def __init__(self, server: int, delay: float = 0.3) -> None:
        self.choose: Choose = lambda method, path: None
        self.requests: list[Request] = []
        self._server, self._delay = server, delay
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            head, rest = _read_head(client)
            if not head:
                return
            method, path = head.split(b" ", 2)[:2]
            with self._lock:
                fault = self.choose(method.decode(), path.decode())
                self.requests.append(Request(method.decode(), path.decode(), fault))
            if fault in ANSWERS:
                client.sendall(ANSWERS[fault] + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
                client.shutdown(socket.SHUT_WR)
                _drain(client)
            elif fault == "silent":
                _drain(client)
            else:
                if fault == "slow":
                    self._closed.wait(self._delay)
                self._relay(client, head, rest, fault)

    def _relay(self, client: socket.socket, head: bytes, rest: bytes, fault: str | None) -> None:
        match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        left = (int(match[1]) // 2 if match else 0) if fault == "cut" else None
        head = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)
        with socket.create_connection(("127.0.0.1", self._server)) as server:
            server.sendall(head[:-2] + b"Connection: close\r\n\r\n" + rest[:left])
            if left is not None:
                left -= len(rest)
                if left <= 0:
                    return
            answer = threading.Thread(target=_pump, args=(server, client, fault == "lost"), daemon=True)
            answer.start()
            with suppress(OSError):
                while (left is None or left > 0) and (data := client.recv(65536 if left is None else left)):
                    server.sendall(data)
                    left = left if left is None else left - len(data)
            if left is None:
                answer.join()
            _shut(server)
            _shut(client)


def _pump(source: socket.socket, target: socket.socket, lose: bool) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            if not lose:
                target.sendall(data)
    _shut(target)


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    """The head of a request with its empty line, and what came after it; b"" if the client left."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = client.recv(65536)
        if not more:
            return b"", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _drain(client: socket.socket) -> None:
    """Takes all that the client sends, until it leaves."""
    while client.recv(65536):
        pass


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def set_credentials() -> None:
    os.environ.update(CREDENTIALS)
