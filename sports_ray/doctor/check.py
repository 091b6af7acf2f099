"""One thing that the doctor looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Area = Literal["environment", "data", "run"]
Severity = Literal["ok", "look", "bad"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at and what was found; a finding where it is not `ok`."""

    area: Area
    what: str
    got: str
    severity: Severity = "ok"
    """look: worth a look, training works; bad: it fails, or its result is wrong."""
    want: str = ""
    cure: str = ""
    items: tuple[str, ...] = ()
    """All that `got` gives examples of, where that is more."""

    def __str__(self) -> str:
        """One line, in the form of errors."""
        if self.severity == "ok":
            return f"{self.what}: {self.got}"
        parts = [self.what, f"got {self.got}"]
        parts += [f"wanted {self.want}"] if self.want else []
        parts += [f"cure: {self.cure}"] if self.cure else []
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        facts = asdict(self)
        return {"area": facts.pop("area"), "severity": facts.pop("severity"), "wanted": facts.pop("want"), **facts}
