"""Notices of AWS, GCP and Azure: read from servers that speak their protocols, with deadlines earlier than the truth."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest

from sports_ray.errors import ConfigError
from sports_ray.orchestrate import spot
from sports_ray.orchestrate.notices import Notice, aws_action, aws_rebalance, azure_events, gcp_preempted
from sports_ray.orchestrate.spot import CLOUDS, Metadata, Node, Watcher, choose_node, find_cloud
from tests.support.metadata import (
    AWS_ACTION,
    AWS_REBALANCE,
    AWS_TOKEN,
    AZURE_EVENTS,
    GCP_PREEMPTED,
    metadata_server,
)

NOW = 1_790_000_000.0


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def azure(*events: dict[str, object]) -> str:
    return json.dumps({"DocumentIncarnation": 2, "Events": list(events)})


def event(kind: str, at: float | None, machine: str = "vm-7") -> dict[str, object]:
    before = formatdate(at, usegmt=True) if at is not None else ""
    return {
        "EventId": "e",
        "EventType": kind,
        "Resources": ["vm-1", machine],
        "NotBefore": before,
        "EventStatus": "Scheduled",
    }


@pytest.mark.parametrize(("left", "told"), [(120, 110), (30, 20), (12, 6), (4, 2), (1, 1), (-5, 1)])
def test_ray_is_told_an_earlier_end_than_the_clouds(left: float, told: float) -> None:
    assert Notice("", NOW + left).deadline(NOW) == NOW + told


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_aws_says_when(action: str) -> None:
    body = json.dumps({"action": action, "time": iso(NOW + 118)})
    assert aws_action(body, NOW) == Notice(f"aws: spot {action}", NOW + 118)


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", '{"action": "terminate"}', '{"action": "terminate", "time": "soon"}']
)
def test_a_notice_that_cannot_be_read_is_a_notice(body: str) -> None:
    assert aws_action(body, NOW).at == NOW + 120


def test_a_recommendation_may_come_with_its_notice() -> None:
    body = json.dumps({"noticeTime": iso(NOW - 3600)})
    assert aws_rebalance(body, NOW) == Notice("aws: rebalance recommendation", NOW + 120)


def test_gcp_gives_thirty_seconds() -> None:
    assert gcp_preempted("TRUE\n", NOW) == Notice("gcp: preempted", NOW + 30)
    assert gcp_preempted("FALSE", NOW) is None


def test_azure_tells_machines_and_events_apart() -> None:
    assert azure_events(azure(), "vm-7", NOW) is None
    assert azure_events(azure(event("Preempt", NOW + 40, "vm-8")), "vm-7", NOW) is None
    assert azure_events(azure(event("Freeze", NOW + 900)), "vm-7", NOW) is None
    several = azure(event("Redeploy", NOW + 600), event("Preempt", NOW + 40), event("Reboot", NOW + 900))
    assert azure_events(several, "vm-7", NOW) == Notice("azure: preempt", NOW + 40)
    assert azure_events(azure(event("Terminate", None)), "vm-7", NOW) == Notice("azure: terminate", NOW), "it has begun"
    assert azure_events(azure(event("Preempt", None) | {"NotBefore": "soon"}), "vm-7", NOW) is not None


def test_aws_is_asked_with_a_token_and_gets_a_new_one_when_it_has_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody there: metadata never goes through a proxy
    with metadata_server("aws") as said:
        _, cloud = find_cloud("aws", said.url, True)
        assert cloud.look() is None and cloud.look() is None
        assert said.requests.count(f"PUT {AWS_TOKEN}") == 1
        said.tokens.clear()
        assert cloud.look() is None
        assert said.requests.count(f"PUT {AWS_TOKEN}") == 2
        said.answers[AWS_REBALANCE] = json.dumps({"noticeTime": iso(time.time())})
        assert cloud.look().reason == "aws: rebalance recommendation"  # type: ignore[union-attr]
        said.answers[AWS_ACTION] = json.dumps({"action": "terminate", "time": iso(NOW)})
        assert cloud.look() == Notice("aws: spot terminate", NOW)
        del said.answers[AWS_ACTION]
        assert find_cloud("aws", said.url, False)[1].look() is None, "recommendations may be left out"


def test_gcp_and_azure_are_asked_with_their_headers() -> None:
    with metadata_server("gcp") as said:
        cloud = CLOUDS["gcp"](Metadata(said.url), True)
        assert cloud.look() is None
        said.answers[GCP_PREEMPTED] = "TRUE"
        assert cloud.look().reason == "gcp: preempted"  # type: ignore[union-attr]
    with metadata_server("azure") as said:
        cloud = CLOUDS["azure"](Metadata(said.url), True)
        assert cloud.look() is None
        said.answers[AZURE_EVENTS] = azure(event("Preempt", NOW), event("Preempt", NOW - 90, "vm-8"))
        assert cloud.look() == Notice("azure: preempt", NOW)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_cloud_is_found_by_its_protocol(cloud: str) -> None:
    with metadata_server(cloud) as said:
        assert find_cloud("auto", said.url, True)[0] == cloud


def test_no_cloud_is_a_mistake_that_says_what_to_give() -> None:
    with metadata_server("gcp") as said:
        said.broken = True
        said.cloud = "none"
        with pytest.raises(
            ConfigError, match="--provider; got auto, and no metadata address answers; wanted one of aws, gcp"
        ):
            find_cloud("auto", said.url, True)


def test_a_metadata_address_that_falls_silent_is_told_once_and_asked_again() -> None:
    told: list[str] = []
    with metadata_server("gcp") as said:
        watcher = Watcher(CLOUDS["gcp"](Metadata(said.url), True), "", lambda name, *_, **__: told.append(name))
        assert watcher.step() is None and told == []
        said.broken = True
        assert [watcher.step(), watcher.step()] == [None, None] and told == ["silent"]
        said.broken = False
        assert watcher.step() is None and told == ["silent", "back"]
    assert watcher.step() is None and told == ["silent", "back", "silent"], "nobody listens there any more"


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b""]
)
def test_an_answer_that_is_no_http_is_told_once_and_the_watch_goes_on(answer: bytes) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(answer)

    told: list[str] = []
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        watcher = Watcher(CLOUDS["gcp"](Metadata(url), True), "f" * 56, lambda name, *_, **__: told.append(name))
        assert [watcher.step(), watcher.step()] == [None, None] and told == ["silent"]
        with pytest.raises(ConfigError, match="no metadata address answers"):
            find_cloud("auto", url, True)
        server.shutdown()


def test_events_that_cannot_be_read_are_told_and_those_after_them_are_read() -> None:
    told: list[str] = []
    with metadata_server("azure") as said:
        watcher = Watcher(CLOUDS["azure"](Metadata(said.url), True), "f" * 56, lambda name, *_, **__: told.append(name))
        said.answers[AZURE_EVENTS] = '{"Events": ["Preempt"]}'
        assert watcher.step() is None and told == ["silent"]
        said.answers[AZURE_EVENTS] = azure(event("Preempt", NOW))
        assert watcher.step() == Notice("azure: preempt", NOW) and told == ["silent", "back", "refused"]


def test_a_notice_while_ray_is_restarted_is_told_and_drains_the_node_that_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, str]] = []
    nodes = [Node("old", "host:1"), Node("new", "host:2")]
    drained: list[str] = []

    def drain(node: Node, notice: Notice) -> float:
        drained.append(node.id)
        return notice.deadline(time.time())

    monkeypatch.setattr(spot, "nodes_here", lambda: list(nodes))
    monkeypatch.setattr(spot, "drain", drain)
    with metadata_server("gcp") as said:
        said.answers[GCP_PREEMPTED] = "TRUE"
        watcher = Watcher(
            CLOUDS["gcp"](Metadata(said.url), True), "", lambda name, text, **_: told.append((name, text))
        )
        assert watcher.step() is not None and watcher.step() is not None and drained == []
        del nodes[0]
        assert watcher.step() is not None and watcher.step() is not None
    assert drained == ["new"] and [name for name, _ in told] == ["refused", "drained"]
    assert told[0][1].startswith(
        "! gcp: preempted, and --node-id; got 2 nodes of Ray on this machine; wanted which one"
    )


def test_a_notice_without_a_node_is_told_once_and_kept() -> None:
    told: list[str] = []
    with metadata_server("gcp") as said:
        said.answers[GCP_PREEMPTED] = "TRUE"
        watcher = Watcher(CLOUDS["gcp"](Metadata(said.url), True), "f" * 56, lambda name, *_, **__: told.append(name))
        assert watcher.step() is not None and watcher.step() is not None
    assert told == ["refused"]


def test_one_node_of_a_machine_is_its_own_and_of_several_one_must_be_named() -> None:
    one, other = Node("a", "host:1"), Node("b", "host:2")
    assert choose_node([], "") is None and choose_node([one], "") == one and choose_node([one], "b") is None
    assert choose_node([one, other], "b") == other
    with pytest.raises(ConfigError, match="--node-id; got 2 nodes of Ray on this machine; wanted which one"):
        choose_node([one, other], "")
