"""A server that speaks the metadata protocols of AWS, GCP and Azure, as their documentation has them."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

AWS_TOKEN = "/latest/api/token"
AWS_ACTION = "/latest/meta-data/spot/instance-action"
AWS_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
GCP_PREEMPTED = "/computeMetadata/v1/instance/preempted"
AZURE_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
AZURE_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"


@dataclass
class Metadata:
    """What the server says: change it, and the next answer differs."""

    cloud: str
    answers: dict[str, str] = field(default_factory=dict)
    """Bodies by path, as asked for; anything else is 404."""
    tokens: set[str] = field(default_factory=set)
    """AWS: those that are valid."""
    requests: list[str] = field(default_factory=list)
    broken: bool = False
    """Answers with 500 to everything."""
    url: str = ""

    def answer(self, method: str, path: str, headers: Any) -> tuple[int, str]:
        self.requests.append(f"{method} {path}")
        if self.broken:
            return 500, ""
        if self.cloud == "aws":
            if method == "PUT" and path == AWS_TOKEN:
                if not 1 <= int(headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0)) <= 21600:
                    return 400, ""
                self.tokens.add(token := secrets.token_hex(8))
                return 200, token
            if headers.get("X-aws-ec2-metadata-token") not in self.tokens:
                return 401, ""
        wanted = {"gcp": ("Metadata-Flavor", "Google"), "azure": ("Metadata", "true")}.get(self.cloud)
        if method != "GET" or (wanted and headers.get(wanted[0]) != wanted[1]):
            return 403 if self.cloud == "gcp" else 400, ""
        return (200, self.answers[path]) if path in self.answers else (404, "not found")


@contextmanager
def metadata_server(cloud: str) -> Iterator[Metadata]:
    """Serves on a free port of this host; nothing is announced yet."""
    said = Metadata(cloud)
    if cloud == "gcp":
        said.answers = {"/computeMetadata/v1/": "instance/\nproject/\n", GCP_PREEMPTED: "FALSE"}
    if cloud == "azure":
        said.answers = {AZURE_NAME: "vm-7", AZURE_EVENTS: json.dumps({"DocumentIncarnation": 1, "Events": []})}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    cast(Any, server).said = said
    said.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def _reply(self) -> None:
        said: Metadata = cast(Any, self.server).said
        status, body = said.answer(self.command, self.path, self.headers)
        data = body.encode()
        self.send_response(status)
        if said.cloud == "gcp":
            self.send_header("Metadata-Flavor", "Google")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = _reply

    def log_message(self, *_: Any) -> None:
        pass
