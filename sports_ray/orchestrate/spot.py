"""Watches a cloud's metadata address on one node, and drains the node in Ray before the cloud takes it away.

Ray itself turns no cloud's notice into a drain. Its draining nodes are watched by the train workers, which commit and
leave (`worker.py`), and by Ray's scheduler, which places nothing on them any more.
"""

from __future__ import annotations

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Protocol

from sports_ray.errors import ConfigError
from sports_ray.orchestrate.notices import Notice, aws_action, aws_rebalance, azure_events, gcp_preempted
from sports_ray.processes import name_of

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
TOKEN_SECONDS = 21600
ADDRESSES = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
    "azure": "http://169.254.169.254",
}
PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION` of Ray's autoscaler.proto: never refused, and a death after the deadline is no crash."""
_UNAUTHORIZED, _NOT_FOUND, _OK = 401, 404, 200


class Metadata:
    """HTTP to a metadata address: never through a proxy, never for long."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str, Message]:
        """(status, body, headers) of the answer; OSError if there is none, or one that is no HTTP."""
        request = urllib.request.Request(f"{self._base}/{path}", headers=dict(headers), method=method)
        try:
            with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
                return answer.status, answer.read(1 << 20).decode(errors="replace"), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, "", error.headers
        except http.client.HTTPException as error:
            raise ConnectionError(f"no HTTP: {error!r}") from error


class Cloud(Protocol):
    def here(self) -> bool:
        """Whether this machine is one of this cloud; OSError if nobody answers."""

    def look(self) -> Notice | None:
        """What is said now; OSError if nobody answers."""


class Aws:
    """EC2, with version 2 of its metadata service: each request carries a token."""

    def __init__(self, metadata: Metadata, rebalance: bool = True) -> None:
        self._metadata, self._rebalance = metadata, rebalance
        self._token = ""

    def here(self) -> bool:
        return self._new_token()

    def look(self) -> Notice | None:
        if (body := self._get("latest/meta-data/spot/instance-action")) is not None:
            return aws_action(body, time.time())
        if self._rebalance and (body := self._get("latest/meta-data/events/recommendations/rebalance")) is not None:
            return aws_rebalance(body, time.time())
        return None

    def _new_token(self) -> bool:
        wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
        status, body, _ = self._metadata.ask("latest/api/token", wanted, "PUT")
        self._token = body.strip() if status == _OK else ""
        return bool(self._token)

    def _get(self, path: str) -> str | None:
        """The answer, or None where there is nothing at that address."""
        for _ in range(2):
            status, body, _ = self._metadata.ask(path, {"X-aws-ec2-metadata-token": self._token})
            if status != _UNAUTHORIZED:
                return _text(status, body)
            self._new_token()  # there was none yet, or it has run out
        raise ConnectionError("the metadata service takes no token")


class Gcp:
    """Compute Engine."""

    _HEADERS = {"Metadata-Flavor": "Google"}

    def __init__(self, metadata: Metadata, rebalance: bool = True) -> None:
        self._metadata = metadata

    def here(self) -> bool:
        _, _, headers = self._metadata.ask("computeMetadata/v1/", self._HEADERS)
        return headers.get("Metadata-Flavor") == "Google"

    def look(self) -> Notice | None:
        status, body, _ = self._metadata.ask("computeMetadata/v1/instance/preempted", self._HEADERS)
        text = _text(status, body)
        return gcp_preempted(text, time.time()) if text is not None else None


class Azure:
    """Azure virtual machines: events are those of a whole set of machines, told apart by name."""

    _HEADERS = {"Metadata": "true"}

    def __init__(self, metadata: Metadata, rebalance: bool = True) -> None:
        self._metadata = metadata
        self._machine = ""

    def here(self) -> bool:
        return bool(self._name())

    def look(self) -> Notice | None:
        status, body, _ = self._metadata.ask("metadata/scheduledevents?api-version=2020-07-01", self._HEADERS)
        text = _text(status, body)
        return azure_events(text, self._name(), time.time()) if text is not None else None

    def _name(self) -> str:
        if not self._machine:
            path = "metadata/instance/compute/name?api-version=2021-02-01&format=text"
            status, body, _ = self._metadata.ask(path, self._HEADERS)
            self._machine = (_text(status, body) or "").strip()
        return self._machine


CLOUDS: dict[str, Callable[[Metadata, bool], Cloud]] = {"aws": Aws, "gcp": Gcp, "azure": Azure}


def find_cloud(name: str, base: str, rebalance: bool) -> tuple[str, Cloud]:
    """(name, cloud) for `auto` or a name; `base` in place of the cloud's own address. ConfigError if none answers."""
    for one in CLOUDS if name == "auto" else (name,):
        cloud = CLOUDS[one](Metadata(base or ADDRESSES[one]), rebalance)
        if name != "auto":
            return one, cloud
        try:
            if cloud.here():
                return one, cloud
        except OSError as error:
            logger.info("no %s: %s", one, error)
    raise ConfigError("--provider", got="auto, and no metadata address answers", want="one of " + ", ".join(CLOUDS))


@dataclass(frozen=True, slots=True)
class Node:
    """A node of Ray as its raylet was started."""

    id: str
    gcs: str
    """host:port of the cluster's GCS."""


def nodes_here() -> list[Node]:
    """The raylets of this machine, from their command lines."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        program, *words = name_of(int(entry.name)).split(" ") or [""]
        if os.path.basename(program) == "raylet":
            flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
            if {"node_id", "gcs-address"} <= flags.keys():
                found.append(Node(flags["node_id"], flags["gcs-address"]))
    return found


def choose_node(found: list[Node], node_id: str) -> Node | None:
    """The node to drain; None while there is no raylet. ConfigError if there are several and none is named."""
    fitting = [node for node in found if node_id in ("", node.id)]
    if len(fitting) > 1:
        raise ConfigError("--node-id", got=f"{len(fitting)} nodes of Ray on this machine", want="which one of them")
    return fitting[0] if fitting else None


def drain(node: Node, notice: Notice) -> float:
    """Tells Ray that the node goes away; the deadline that was told. RuntimeError or Ray's own if it does not take it."""
    import ray

    deadline = notice.deadline(time.time())
    client = ray._raylet.GcsClient(address=node.gcs)  # type: ignore[attr-defined]
    accepted, why = client.drain_node(node.id, PREEMPTION, notice.reason, int(1000 * deadline))
    if not accepted:
        raise RuntimeError(f"drain refused: {why}")
    return deadline


class Watcher:
    """Looks again and again; each notice becomes a drain, tried until Ray takes it; a later one only if it ends earlier."""

    def __init__(self, cloud: Cloud, node_id: str, tell: Callable[..., None]) -> None:
        """`tell(name, text, **data)`: for people and machines."""
        self._cloud, self._node_id, self._tell = cloud, node_id, tell
        self._drained: dict[str, float] = {}
        """Until when each node was said to live."""
        self._silent = False
        self._refused = ""

    def step(self) -> Notice | None:
        """One look, with what follows from it; the notice, if there is one."""
        try:
            notice = self._cloud.look()
        except Exception as error:  # noqa: BLE001  an answer may be anything, and the next one may be the notice
            if not self._silent:
                self._tell("silent", f"! the metadata address does not answer: {error}", error=str(error))
            self._silent = True
            return None
        if self._silent:
            self._tell("back", "the metadata address answers again")
        self._silent = False
        if notice is not None:
            self._follow(notice)
        return notice

    def _follow(self, notice: Notice) -> None:
        try:
            node = choose_node(nodes_here(), self._node_id)
        except ConfigError as error:  # while Ray is restarted there may be its old raylet and its new one
            self._complain(f"{notice.reason}, and {error}")
            return
        if node is None:
            self._complain(f"{notice.reason}, and there is no node of Ray here")
            return
        if self._drained.get(node.id, float("inf")) <= notice.deadline(time.time()) + 1:
            return
        try:
            deadline = drain(node, notice)
        except Exception as error:  # noqa: BLE001  Ray raises many kinds; each is a reason to try again at the next look
            self._complain(f"{notice.reason}, and Ray does not take the drain: {error}")
            return
        self._drained[node.id] = deadline
        left, told = notice.at - time.time(), deadline - time.time()
        text = f"{notice.reason} in {left:.0f} s: node {node.id[:8]} drains, deadline told to Ray in {told:.0f} s"
        self._tell("drained", text, reason=notice.reason, node=node.id, at=notice.at, deadline=deadline)

    def _complain(self, text: str) -> None:
        if text != self._refused:
            self._tell("refused", f"! {text}", error=text)
        self._refused = text


def _text(status: int, body: str) -> str | None:
    if status == _OK:
        return body
    if status == _NOT_FOUND:
        return None
    raise ConnectionError(f"status {status}")
