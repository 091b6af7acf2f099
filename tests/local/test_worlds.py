"""Any world: the stream is the same for any number of workers, and with `loop.strict` so are the weights, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sports_ray.config import TrainConfig
from sports_ray.data.demo import draw_demo
from sports_ray.engine.world import World
from sports_ray.recipe import config_from_dict, config_to_dict
from tests.support.ranks import on_ranks
from tests.support.runs import results, small_config

STEPS = 8  # two epochs of four steps, 12 images a step in 4 lanes


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "set"
    draw_demo(folder, classes=4, per_class=12, size=40, seed=1)
    return folder


def train_rank(world: World, settings: dict[str, Any], stop_at: int, ledger: str) -> dict[str, Any]:
    """Trains on one rank; stops, all ranks together, when `stop_at` steps were done; writes what it consumed."""
    from sports_ray.data import augment
    from sports_ray.data.loader import Reader
    from sports_ray.data.order import Request
    from sports_ray.engine import gradient
    from sports_ray.engine.link import InProcessLink
    from sports_ray.engine.run import run
    from sports_ray.orchestrate.plan import load_run, make_plan, write_record

    consumed: dict[str, Any] = {}
    params: list[augment.Params] = []
    apply, fill, plan_lane = augment.apply, Reader.fill, gradient.plan_lane

    def applied(image: Any, param: augment.Params, *rest: Any) -> Any:
        params.append(param)
        return apply(image, param, *rest)

    def filled(reader: Reader, request: Request, buffer: Any) -> Any:
        params.clear()
        rows = fill(reader, request, buffer)
        if request.split == "train":
            for position, row, param in zip(range(request.start, request.stop), rows.tolist(), params, strict=True):
                consumed[f"{request.epoch}/{position}"] = [reader.path("train", row), repr(param)]
        return rows

    def planned(*arguments: Any) -> Any:
        plan = plan_lane(*arguments)
        _, _, step, lane, n, *_ = arguments
        consumed[f"step {step} lane {lane}"] = [n, plan.kind, plan.lam, plan.partner.tolist(), plan.box]
        return plan

    augment.apply, Reader.fill, gradient.plan_lane = applied, filled, planned  # type: ignore[method-assign, assignment]
    plan = make_plan(config_from_dict(settings))
    if world.rank == 0:
        write_record(plan)
    world.from_rank0(0)
    looks = 0

    def look(link: InProcessLink) -> str:
        nonlocal looks
        looks += 1
        return "enough" if looks == stop_at else ""

    InProcessLink.should_stop = look  # type: ignore[method-assign]
    config, manifest = load_run(plan.run_dir)
    outcome = run(config, manifest, plan.run_dir, InProcessLink(lambda event: None), world)
    Path(f"{ledger}-{world.rank}.json").write_text(json.dumps(consumed))
    return {"step": outcome.step}


def train_on(folder: Path, config: TrainConfig, *sessions: tuple[int, int]) -> dict[str, Any]:
    """Trains in sessions of (workers, steps; 0: to the end); what all of them consumed, by position and lane."""
    consumed: dict[str, Any] = {}
    for number, (workers, stop_at) in enumerate(sessions):
        ledger = folder / f"{config.store.run}-{number}"
        on_ranks(
            folder / f"meet-{config.store.run}-{number}",
            workers,
            train_rank,
            config_to_dict(config),
            stop_at,
            str(ledger),
        )
        for rank in range(workers):
            for key, fact in json.loads(Path(f"{ledger}-{rank}.json").read_text()).items():
                # The loader works ahead: what a stopped session had prepared, the next one prepares again.
                assert consumed.setdefault(key, fact) == fact
    return consumed


IN_SHORT = {"one": [(1, 0)], "changing": [(2, 3), (4, 2), (3, 0)]}
IN_FULL = {"two": [(2, 0)], "three": [(3, 0)], "four": [(4, 0)], "back": [(4, 1), (1, 3), (3, 2), (2, 0)]}
sessions = pytest.mark.parametrize(
    "sessions", [IN_SHORT, pytest.param({"one": [(1, 0)], **IN_FULL}, marks=pytest.mark.long)], ids=["short", "full"]
)


def assert_whole(ledger: dict[str, Any]) -> None:
    """Each position of both epochs once, and each lane of each step."""
    positions = [key for key in ledger if not key.startswith("step")]
    assert len(positions) == 2 * 48 and len(ledger) == len(positions) + STEPS * 4
    assert {fact[1] for key, fact in ledger.items() if key.startswith("step")} == {"mixup", "cutmix"}


@pytest.mark.long
@sessions
def test_ledger_is_the_same_whatever_the_number_of_workers_and_its_changes(
    photos: Path, tmp_path: Path, sessions: dict[str, list[tuple[int, int]]]
) -> None:
    found = {name: train_on(tmp_path, small_config(photos, tmp_path, name), *parts) for name, parts in sessions.items()}
    assert_whole(found["one"])
    for name, ledger in found.items():
        assert ledger == found["one"], name


@sessions
@pytest.mark.parametrize("model", ["test_resnet", pytest.param("test_vit", marks=pytest.mark.long)])
def test_strict_weights_are_bitwise_equal_whatever_the_number_of_workers_and_its_changes(
    photos: Path, tmp_path: Path, model: str, sessions: dict[str, list[tuple[int, int]]]
) -> None:
    strict: dict[str, Any] = {"loop__strict": True, "model__name": model}
    configs = {name: small_config(photos, tmp_path, name, **strict) for name in sessions}
    ledgers = {name: train_on(tmp_path, configs[name], *parts) for name, parts in sessions.items()}
    assert_whole(ledgers["one"])
    for name in sessions:
        assert ledgers[name] == ledgers["one"], name
        assert results(configs[name]) == results(configs["one"]), name


@pytest.mark.long
def test_without_strict_another_number_of_workers_shows_in_the_last_bits(photos: Path, tmp_path: Path) -> None:
    configs = {name: small_config(photos, tmp_path, name) for name in ("one", "two")}
    for name, workers in (("one", 1), ("two", 2)):
        train_on(tmp_path, configs[name], (workers, 0))
    assert results(configs["one"]) != results(configs["two"])
