"""Benches: each runs, and its figures agree with each other. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from sports_ray.bench.checkpoint import figures
from sports_ray.bench.figure import Figure, median, middle_rate, ratio, take_turns
from sports_ray.bench.loader import CASES
from sports_ray.bench.timm_script import VALIDATION_LINE, steady
from sports_ray.bench.tune import Told
from sports_ray.bench.tune import figures as tune_figures
from sports_ray.cli.bench import bench
from sports_ray.config import ClusterConfig
from sports_ray.data.demo import draw_demo
from sports_ray.engine.interval import commit_interval
from sports_ray.errors import ConfigError
from sports_ray.processes import below, still_there
from tests.support.running import Running


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bench") / "photographs"
    draw_demo(folder, classes=2, per_class=24, size=64)
    return str(folder)


def shown(*words: str) -> dict[str, dict]:
    """Figures of a bench by name, as --json gives them."""
    result = CliRunner().invoke(bench, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["bench"] for line in lines} == {words[0]}
    return {line["name"]: line for line in lines}


def quotient(found: dict[str, dict], above: str, below: str) -> float:
    return found[above]["value"] / found[below]["value"]


def test_turns_alternate_and_keep_their_order() -> None:
    calls: list[str] = []

    def turn(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    values = take_turns(3, {"a": lambda: turn("a"), "b": lambda: turn("b")})
    assert calls == ["a", "b"] * 3
    assert values == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


def test_a_ratio_is_the_median_of_the_rounds_and_knows_its_floor() -> None:
    ours = median("ours", "", [90.0, 10.0, 100.0], "images/s")
    other = median("other", "", [45.0, 20.0, 25.0], "images/s")
    assert (ours.value, other.value) == (90.0, 25.0)
    result = ratio("r", "", ours, other, least=2.0)
    assert result.value == 2.0 and result.met is True
    assert ratio("r", "", ours, other, least=2.01).met is False
    assert ratio("r", "", ours, other).met is None
    assert Figure(name="f", words="", value=1.1, unit="%", most=1.0).met is False


def test_steady_speed_of_timm_leaves_out_what_comes_before_the_second_line_of_an_epoch() -> None:
    lines = [
        "Train: 0 [   0/20 (  5%)]  Loss: 4.59 (4.59)  Time: 9.000s,    3.55/s  (9.000s,    3.55/s)  LR: 1.000e-03",
        "Train: 0 [   9/20 ( 50%)]  Loss: 4.31 (4.51)  Time: 0.500s,   64.00/s  (1.400s,   22.86/s)  LR: 1.000e-03",
        "Train: 0 [  19/20 (100%)]  Loss: 4.28 (4.47)  Time: 0.500s,   64.00/s  (0.950s,   33.68/s)  LR: 1.000e-03",
        "some other line",
    ]
    assert steady(32, lines) == pytest.approx(10 * 32 / 5.0)


def test_lines_of_timms_validation_tell_its_steady_speed() -> None:
    lines = [
        "Test: [   0/64]  Time: 2.010s (2.010s,   15.92/s)  Loss:  2.2 ( 2.2)  Acc@1:   6.2 (  6.2)  Acc@5:  62.5 ( 62.5)",
        "Test: [   5/64]  Time: 0.105s (0.450s,   71.11/s)  Loss:  2.1 ( 2.2)  Acc@1:   9.3 (  7.2)  Acc@5:  60.5 ( 62.5)",
        "Test: [  10/64]  Time: 0.100s (0.300s,  106.67/s)  Loss:  2.1 ( 2.2)  Acc@1:   9.3 (  7.2)  Acc@5:  60.5 ( 62.5)",
    ]
    assert steady(32, lines, VALIDATION_LINE) == pytest.approx(5 * 32 / (11 * 0.3 - 6 * 0.45))


def test_speed_is_that_of_the_middle_half() -> None:
    """A slow start, what was read ahead before it, and a fast end do not count."""
    ends = [10.0, 10.1, 12.0, 14.0, 16.0, 18.0, 18.1, 18.2]
    assert middle_rate([(end, 256) for end in ends]) == pytest.approx(4 * 256 / (18.0 - 10.1))
    with pytest.raises(ValueError, match="3 parts"):
        middle_rate([(1.0, 1)] * 3)


def test_cost_of_a_commit_is_the_stall_before_it_and_the_slower_steps_beside_it() -> None:
    lengths = [1.0] * 20
    lengths[9], lengths[10], lengths[11] = 1.5, 1.25, 1.25  # stalled; written during two steps
    looks = [sum(lengths[:step]) for step in range(21)]
    found = {figure.name: figure for figure in figures(looks, [{"step": 10, "stall": 0.5, "seconds": 2.0}], 30.0)}
    assert found["stall"].value == 500.0
    interval = commit_interval(1.0, ClusterConfig().mtbf)
    assert found["stall_share"].value == pytest.approx(100 * 0.5 / interval)
    assert found["steps_alone"].value == 1.0
    assert found["slowdown"].value == pytest.approx(0.8)
    assert found["cost_share"].value == pytest.approx(100 * 1.0 / interval)
    assert found["speed"].value == 15.0


@pytest.mark.long
def test_bench_train_measures_the_whole_path_beside_the_bare_loop(drawn: str) -> None:
    sizes = ["--model", "test_resnet", "--size", "32", "--batch", "8", "--steps", "8", "--rounds", "1"]
    found = shown("train", "--data", drawn, *sizes, "--precision", "fp32", "--workers", "0")
    assert found["bare"]["value"] > 0 and found["whole"]["value"] > 0
    assert found["whole_per_bare"]["value"] == pytest.approx(quotient(found, "whole", "bare"))
    assert found["whole_per_bare"]["least"] == 0.93


def test_bench_train_names_a_timm_script_that_is_not_there(drawn: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--timm-script.*train.py"):
        CliRunner().invoke(bench, ["train", "--timm-script", str(tmp_path / "none.py")], catch_exceptions=False)


@pytest.mark.long
def test_bench_predict_measures_the_path_on_both_ways_and_scores_made_up_rows(drawn: str) -> None:
    sizes = ["--model", "test_resnet", "--size", "32", "--images", "1024", "--rounds", "1", "--precision", "fp32"]
    found = shown("predict", "--data", drawn, *sizes, "--workers", "1", "--rows", "3000")
    for name, least in (("here_per_bare", 0.95), ("ray_per_bare", 0.95), ("hflip_per_plain", 0.5)):
        above, _, below = name.partition("_per_")
        assert found[name]["value"] == pytest.approx(quotient(found, above, below.replace("plain", "here")))
        assert found[name]["least"] == least
    assert found["scoring_seconds"]["value"] > 0 and found["scoring_seconds"]["most"] == pytest.approx(0.18)
    assert 0.1 < found["scoring_memory"]["value"] < found["scoring_memory"]["most"] == 2.0


def test_bench_predict_names_a_timm_script_that_is_not_there(drawn: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--timm-script.*validate.py"):
        CliRunner().invoke(bench, ["predict", "--timm-script", str(tmp_path / "none.py")], catch_exceptions=False)


def test_bench_loader_measures_every_case_on_all_sides(drawn: str) -> None:
    found = shown("loader", "--data", drawn, "--size", "32", "--images", "32", "--rounds", "1")
    for case in CASES:
        expected = quotient(found, f"{case.name}_ours", f"{case.name}_timm")
        assert found[f"{case.name}_ratio"]["value"] == pytest.approx(expected)
        assert found[f"{case.name}_cached_ratio"]["value"] > 0
    assert {case.name: found[f"{case.name}_ratio"].get("least") for case in CASES}["rand"] == 1.6


def test_bench_checkpoint_measures_a_real_run(drawn: str) -> None:
    found = shown("checkpoint", "--data", drawn, "--model", "test_resnet", "--steps", "32", "--every", "8")
    assert found["stall_share"]["value"] > 0 and found["stall_share"]["most"] == 1.0
    assert found["slowdown"]["value"] == pytest.approx(quotient(found, "steps_beside", "steps_alone"))
    assert 1 < found["size"]["value"] < 20
    assert all(math.isfinite(line["value"]) for line in found.values())


def test_bench_start_lists_a_folder_twice_and_reads_it_once(tmp_path: Path) -> None:
    from sports_ray.bench.start import _listing

    first, again = _listing(400, tmp_path, lambda line: None)
    assert 0 < again.value < first.value
    assert again.most == pytest.approx(0.02)


def told(seconds: float, *events: tuple[float, str, str, int]) -> Told:
    return Told([{"at": at, "event": kind, "trial": name, "pid": pid} for at, kind, name, pid in events], seconds)


def test_bench_that_is_told_to_end_takes_its_training_with_it(tmp_path: Path) -> None:
    with Running(tmp_path, "bench", "start", "--rounds", "1") as running:
        assert running.wait_until(
            lambda: any("train" in Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in below(running.pid))
        )
        family = below(running.pid)
        running.send(signal.SIGTERM)
        assert running.end().code == 130
    assert family and not still_there(family)


def test_figures_of_a_sweep_compare_each_trial_with_the_same_run_after_another_in_a_warm_process() -> None:
    """Two processes; of steps the first counts, of trials those that follow one in their process."""
    sweep = told(
        40.0,
        *((10.0, "start", "a", 1), (11.0, "start", "b", 2), (11.5, "step", "a", 1), (12.0, "step", "b", 2)),
        *((20.0, "end", "a", 0), (21.0, "end", "b", 0), (21.5, "start", "c", 1), (21.9, "start", "d", 2)),
        *((22.0, "step", "c", 1), (24.0, "step", "d", 2), (25.0, "step", "c", 1), (32.0, "end", "c", 0)),
        (34.0, "end", "d", 0),
    )
    events = []
    for place, name in enumerate("abcd"):
        start = 10.0 * place
        events += [(start, "start", name, 3), (start + 0.5, "step", name, 3), (start + 9.5, "end", name, 3)]
    alone = told(40.0, *events)
    assert sweep.between() == {"c": 2.0, "d": 3.0}
    assert alone.between() == {"b": 1.0, "c": 1.0, "d": 1.0}
    found = {figure.name: figure for figure in tune_figures({"sweep": [sweep], "alone": [alone], "pair": [alone]})}
    assert found["next_added"].value == 1.5 and found["next_added"].met
    assert (found["sweep"].value, found["alone"].value, found["whole"].value) == (24.0, 39.5, 40.0)
    assert found["sweep_ratio"].value == pytest.approx(24.0 / (39.5 / 2)) and found["sweep_ratio"].met
    assert found["whole_ratio"].value == pytest.approx(40.0 / (39.5 / 2)) and found["whole_ratio"].met is None


@pytest.mark.long
@pytest.mark.timeout(600)
def test_bench_tune_measures_a_sweep_its_runs_without_ray_and_its_driver_s_death() -> None:
    before = below(os.getpid())
    found = shown("tune", "--samples", "2", "--epochs", "2", "--images", "32", "--size", "32", "--rounds", "1")
    assert found["sweep_ratio"]["value"] == pytest.approx(2 * quotient(found, "sweep", "alone"))
    assert found["whole"]["value"] > found["sweep"]["value"] and found["sweep_ratio"]["most"] == 1.25
    assert found["next_trial"]["value"] > 0 and found["next_added"]["most"] == 1.5
    assert 0 < found["restore_local"]["value"] < 120 and 0 < found["restore_joined"]["value"] < 120
    assert set(below(os.getpid())) <= set(before)
