"""The watchdog in a real training: it ends what hangs, showing where, and leaves alone what is merely slow."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sports_ray import processes
from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.engine import guard
from sports_ray.engine.guard import FIRST_SECONDS, Watchdog
from sports_ray.engine.run import least_patience
from sports_ray.engine.world import World
from sports_ray.recipe import config_from_dict, config_to_dict
from tests.support.runs import FORKS, exit_code, small_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=2, per_class=8, size=40, seed=2)
    return folder


def stuck_run(settings: dict[str, Any], stderr: Path) -> None:
    """Trains on photographs of which one is a pipe that nobody writes to, as on a share that does not answer."""
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
    from sports_ray.engine import run
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    plan = make_plan(config_from_dict(settings))
    for path in Path(plan.manifest.root).glob("train/*/*"):
        path.unlink()
        os.mkfifo(path)
    run.Watchdog = functools.partial(Watchdog, first=2.0)  # type: ignore[assignment, misc]
    train_here(plan, lambda event: None)


def test_watchdog_ends_a_process_that_waits_for_ever_and_shows_where(tmp_path: Path) -> None:
    draw_demo(tmp_path / "set", classes=2, per_class=4, size=40)
    config = small_config(tmp_path / "set", tmp_path, loop__global_batch=4, cluster__hang_seconds=0.1)
    assert exit_code(stuck_run, config_to_dict(config), tmp_path / "stderr") == 3
    text = (tmp_path / "stderr").read_text()
    assert "hang: no step for" in text and "Current thread" in text
    assert "loader.py" in text and "in _decoded" in text, "the stacks do not show what hangs"


def slow_store_run(settings: dict[str, Any]) -> None:
    """Trains with a store that takes two seconds and a half for each commit, and a watchdog that has less patience."""
    from sports_ray.engine import run, save
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    write = save.write_commit

    def slow(*arguments: Any) -> Any:
        time.sleep(2.5)
        return write(*arguments)

    save.write_commit = slow  # type: ignore[assignment]
    run.Watchdog = functools.partial(Watchdog, first=2.0)  # type: ignore[assignment, misc]
    train_here(make_plan(config_from_dict(settings)), lambda event: None)


def test_watchdog_does_not_mistake_a_slow_last_commit_for_a_hang(photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "loop__epochs": 1,
        "loop__global_batch": 16,
        "store__every_steps": 0,
        "loop__eval_every": 2,
        "cluster__hang_seconds": 0.1,
    }
    config = small_config(photos, tmp_path, **settings)
    assert exit_code(slow_store_run, config_to_dict(config)) == 0
    assert (tmp_path / "run" / "weights" / "last.safetensors").exists()


def slow_timing_run(settings: dict[str, Any]) -> None:
    """Trains with a store that takes two seconds and a half for the line of an evaluation's time."""
    from sports_ray.engine import run
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan
    from sports_ray.store.run_dir import RunDir

    append = RunDir.append_timing

    def slow(run_dir: RunDir, event: dict[str, Any]) -> None:
        time.sleep(2.5 if event["kind"] == "evaluation" else 0)
        append(run_dir, event)

    RunDir.append_timing = slow  # type: ignore[assignment, method-assign]
    run.Watchdog = functools.partial(Watchdog, first=2.0)  # type: ignore[assignment, misc]
    train_here(make_plan(config_from_dict(settings)), lambda event: None)


def test_watchdog_does_not_mistake_a_slow_line_of_times_for_a_hang(photos: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"loop__epochs": 1, "loop__global_batch": 16, "cluster__hang_seconds": 0.1}
    assert exit_code(slow_timing_run, config_to_dict(small_config(photos, tmp_path, **settings))) == 0
    assert '"evaluation"' in next((tmp_path / "run").glob("timings*")).read_text()


def noted_run(settings: dict[str, Any], notes: Path) -> None:
    """Trains beside a watchdog that notes its beats."""
    from sports_ray.engine import run
    from sports_ray.orchestrate.local import train_here
    from sports_ray.orchestrate.plan import make_plan

    kinds = []

    class Noted(Watchdog):
        def beat(self, kind: guard.Kind) -> None:
            kinds.append(kind)
            super().beat(kind)

    run.Watchdog = Noted  # type: ignore[misc]
    train_here(make_plan(config_from_dict(settings)), lambda event: None)
    notes.write_text(json.dumps(kinds))


def test_watchdog_of_a_training_is_told_steps_from_evaluation_batches(photos: Path, tmp_path: Path) -> None:
    config = small_config(photos, tmp_path, loop__epochs=2, loop__global_batch=4, loop__eval_batch=1)
    assert exit_code(noted_run, config_to_dict(config), tmp_path / "notes") == 0
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    epoch = ["step"] * (line["step"] // 2) + ["evaluation"] * line["val_images"]
    assert json.loads((tmp_path / "notes").read_text()) == 2 * epoch


def config_of(tmp_path: Path, **settings: Any) -> TrainConfig:
    return small_config(tmp_path, tmp_path, **settings)


@pytest.mark.parametrize(("seconds", "least"), [(60.0, FIRST_SECONDS), (2000.0, 2000.0)])
def test_steps_of_a_compiled_model_have_the_long_patience_throughout(
    tmp_path: Path, seconds: float, least: float
) -> None:
    """It is compiled again for the second shape of a step and for each phase, long after the first steps."""
    config = config_of(tmp_path, model__compile=True, cluster__hang_seconds=seconds)
    assert least_patience(config, World()) == least
    assert least_patience(config_of(tmp_path, cluster__hang_seconds=seconds), World()) == seconds


def suspended(ready: Any) -> None:
    """Half a second's work is left of a step when its process is stopped; the watchdog has a second and a half."""
    processes.SUSPENDED_SECONDS = 0.5
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
    with Watchdog(least=1.5, first=1.5):
        ready.set()
        signal.sigwait({signal.SIGCONT})
        time.sleep(0.5)
        os._exit(0)


def test_watchdog_lets_a_process_that_was_stopped_end_its_step() -> None:
    ready = FORKS.Event()
    process = FORKS.Process(target=suspended, args=(ready,))
    process.start()
    assert process.pid is not None and ready.wait(60)
    os.kill(process.pid, signal.SIGSTOP)
    # Not for synchronisation: so long it stands still, by its own clock.
    time.sleep(2.0)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0
