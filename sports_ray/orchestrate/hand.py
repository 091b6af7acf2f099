"""Ray Tune's side of a sweep: what it asks for the next trial, and what it tells."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from sports_ray.orchestrate.tune import Tuning


class Hand(Searcher):
    """Gives Tune the trials that have work left, one by one."""

    def __init__(self, tuning: Tuning) -> None:
        super().__init__()
        self._tuning = tuning

    def suggest(self, trial_id: str) -> Any:
        task = self._tuning.next()
        return task or (Searcher.FINISHED if self._tuning.over else None)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the callback has heard of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder knows."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class Ear(Callback):
    """Hears what trials tell, and hands the answers back before Tune lets them go on."""

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        wish = self._tuning.heard(trial.config["trial"], result.pop("told", ()))
        actor = trial.temporary_state.ray_actor
        if wish and actor is not None and not result.get("done"):
            actor.wish.remote(wish)  # a process works off its calls in order: the next step comes after this

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tuning.broke_off(trial.config["trial"], _reason(trial.error_file or ""))


def _reason(file: str) -> str:
    """The last line of what Tune wrote down; of a killed process it has a page of guesses."""
    with suppress(OSError):
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        if "ActorDiedError" in text or "ActorUnavailableError" in text or "worker process has died" in text:
            return "its process died"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1] if lines else "unknown"
    return "unknown"
