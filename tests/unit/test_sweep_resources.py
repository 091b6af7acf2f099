"""Resources: what can never run is refused, what is settled fits, and every backbone has a place."""

from __future__ import annotations

import pytest

from sports_ray.errors import ConfigError
from sports_ray.sweep.halving import goes_on, make_halving
from sports_ray.sweep.resources import Share, fitting, settle_share

LAPTOP = [{"CPU": 2.0, "GPU": 0.0}]
CLUSTERS = [
    LAPTOP, [{"CPU": 1.0}], [{"CPU": 16.0, "GPU": 1.0}], [{"CPU": 64.0, "GPU": 8.0}], [{"CPU": 8.0, "GPU": 2.0}] * 3,
    [{"CPU": 3.0}, {"CPU": 1.0}], [{"CPU": 0.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}],
]  # fmt: skip


@pytest.mark.parametrize("nodes", CLUSTERS, ids=str)
@pytest.mark.parametrize("backbones", [1, 2, 3])
def test_what_is_settled_by_itself_fits_with_every_backbone_under_way(
    nodes: list[dict[str, float]], backbones: int
) -> None:
    share, concurrent = settle_share(nodes, backbones)
    assert concurrent >= backbones and fitting(nodes, share) >= concurrent
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    assert bool(share.gpus) == bool(gpus) and concurrent * share.gpus <= gpus
    if gpus >= backbones:
        assert share.gpus == 1 and concurrent == gpus, "every GPU has work"


def test_two_backbones_share_one_gpu_and_two_cores() -> None:
    assert settle_share(LAPTOP, 2) == (Share(1, 1.0, 0.0), 2)
    assert settle_share([{"CPU": 12.0, "GPU": 1.0}], 2) == (Share(1, 6.0, 0.5), 2)
    assert settle_share([{"CPU": 1.0}], 2) == (Share(1, 0.5, 0.0), 2)
    assert settle_share([{"CPU": 16.0, "GPU": 4.0}], 2, workers=2) == (Share(2, 4.0, 1.0), 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"concurrent": 1}, "at least one trial of each backbone"),
        ({"cpus": 1.5}, "room for 1 trial of 1 worker of 1.5 CPU"),
        ({"workers": 2, "cpus": 1.0}, "room for 2 at once, one of each backbone"),
        ({"concurrent": 3, "cpus": 1.0}, "room for 3 at once"),
        ({"gpus": 1.0}, "room for 0 trials"),
        ({"gpus": 1.5}, "a fraction of one GPU, or a whole number"),
        ({"gpus": -1.0}, "a fraction of one GPU"),
    ],
)
def test_what_can_never_run_is_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settle_share(LAPTOP, 2, **settings)  # type: ignore[arg-type]
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_room_is_counted_by_node_and_device() -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}]
    counts = {Share(1, 3.0, 0.0): 2, Share(1, 1.0, 0.6): 3, Share(1, 1.0, 0.5): 6, Share(1, 1.0, 2.0): 1}
    counts |= {Share(2, 2.0, 1.0): 1, Share(1, 0.3, 0.0): 26, Share(1, 4.0, 0.1): 2}
    assert {share: fitting(nodes, share) for share in counts} == counts


def test_first_of_three_goes_on_and_slow_starters_are_compared_with_their_own_kind() -> None:
    assert goes_on([], 0.1, 3)
    assert not goes_on([0.5], 0.4, 3) and goes_on([0.5], 0.6, 3) and goes_on([0.5], 0.5, 3)
    assert [goes_on([0.9, 0.8, 0.7], score, 3) for score in (0.95, 0.85, 0.75)] == [True, True, False]
    assert [goes_on([0.1] * 8, score, 2) for score in (0.05, 0.1, 0.2)] == [False, True, True]


def test_rungs_are_evaluated_epochs_before_the_last() -> None:
    assert make_halving(30).rungs == (4, 12)
    assert make_halving(9).rungs == (1, 3)
    assert make_halving(30, eval_every=5).rungs == (5, 15)
    assert make_halving(30, reduction=2, grace=3).rungs == (3, 6, 12, 24)
    for epochs, every, grace in [(1, 1, 0), (10, 10, 0), (5, 1, 5)]:
        with pytest.raises(ConfigError, match="before the last epoch"):
            make_halving(epochs, every, grace=grace)
