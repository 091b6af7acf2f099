"""What clouds say of a machine that goes away, as one record. Pure: answers in, notices out.

AWS    instance-action and rebalance recommendation (EC2 User Guide, "Spot Instance interruption notices")
GCP    instance/preempted (Compute Engine, "Detect if a VM was preempted")
Azure  scheduledevents (Azure Metadata Service, "Scheduled Events for Linux VMs")
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

AWS_SECONDS, GCP_SECONDS, AZURE_SECONDS = 120.0, 30.0, 30.0
"""How long before the end each cloud gives notice, where its answer does not say."""
AZURE_ENDS = ("Preempt", "Terminate", "Reboot", "Redeploy")
"""Scheduled events after which no process is left; Freeze only pauses the machine."""
MARGIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Notice:
    """The word that this machine goes away."""

    reason: str
    """One line for logs, such as `aws: spot terminate`."""
    at: float
    """Unix time after which it may be gone."""

    def deadline(self, now: float) -> float:
        """What to tell Ray: earlier than the truth by ten seconds, or by half of what is left if that is less.

        Ray counts a death after its deadline as a preemption, and one before it as a crash."""
        left = max(0.0, self.at - now)
        return now + max(1.0, left - min(MARGIN_SECONDS, left / 2))


def aws_action(body: str, now: float) -> Notice:
    """Of `latest/meta-data/spot/instance-action`: {"action": "terminate", "time": "2026-11-21T08:22:00Z"}.

    An answer that cannot be read is a notice all the same: without one the address does not exist."""
    found = _object(body)
    action = found.get("action") or "interruption"
    return Notice(f"aws: spot {action}", _iso(found.get("time"), now + AWS_SECONDS))


def aws_rebalance(body: str, now: float) -> Notice:
    """Of `latest/meta-data/events/recommendations/rebalance`: {"noticeTime": ...}, the time at which it was given.

    It says that an interruption is likely and not when; the two minutes' notice may come at once."""
    return Notice("aws: rebalance recommendation", now + AWS_SECONDS)


def gcp_preempted(body: str, now: float) -> Notice | None:
    """Of `computeMetadata/v1/instance/preempted`: TRUE or FALSE."""
    return Notice("gcp: preempted", now + GCP_SECONDS) if body.strip().upper() == "TRUE" else None


def azure_events(body: str, machine: str, now: float) -> Notice | None:
    """Of `metadata/scheduledevents`: the earliest event that ends `machine`; None if there is none.

    NotBefore is an HTTP date, and empty once the event has begun."""
    found = []
    for event in _object(body).get("Events") or []:
        if event.get("EventType") in AZURE_ENDS and machine in (event.get("Resources") or []):
            text = event.get("NotBefore")
            at = _http_date(text, now + AZURE_SECONDS) if text else now
            found.append(Notice(f"azure: {event['EventType'].lower()}", at))
    return min(found, key=lambda notice: notice.at, default=None)


def _object(body: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _iso(text: object, otherwise: float) -> float:
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return otherwise
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _http_date(text: object, otherwise: float) -> float:
    try:
        time = parsedate_to_datetime(str(text))
    except ValueError:
        return otherwise
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
