"""The ledger's digest: one value for one consumption, however it is shared out, and another for any other."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
import torch

from sports_ray.config import DataConfig
from sports_ray.data.order import order
from sports_ray.data.sampler import Sampler
from sports_ray.engine.ledger import Ledger, chained, expected, from_words, to_words
from sports_ray.engine.schedule import Schedule

FILES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(10)]
LEDGER = Ledger(FILES)
SCHEDULE = Schedule(train_images=10, val_images=0, global_batch=4, lanes=4, eval_batch=4, eval_every=1, epochs=2)


def consumed(swap: tuple[int, int] | None = None, seed: int = 3) -> str:
    """Digest of a run that consumed the sampler's rows, two of which changed places, step by step and rank by rank."""
    digest = ""
    for step in range(6):
        rows = order(seed, step // 3, 10).tolist()
        if swap and step < 3:
            rows[swap[0]], rows[swap[1]] = rows[swap[1]], rows[swap[0]]
        words = torch.zeros(8)
        for rank in range(3):
            request = SCHEDULE.train_request(step, rank, 3)
            mark = LEDGER.mark(request.epoch, request.start, rows[request.start : request.stop])
            words += torch.tensor(to_words(mark))
        digest = chained(digest, step, from_words(words.tolist()))
    return digest


def test_digest_of_three_ranks_is_that_of_the_sampler() -> None:
    found = expected(LEDGER, SCHEDULE, Sampler(DataConfig(), 3, np.zeros(10, np.int32)), 6)
    assert found[0] == "" and len(set(found)) == 7 and found[6] == consumed()


@pytest.mark.parametrize("swap", [(0, 1), (0, 9), (4, 5)])
def test_two_images_that_changed_places_show(swap: tuple[int, int]) -> None:
    assert consumed(swap) != consumed()


def test_another_seed_file_epoch_or_position_shows() -> None:
    assert consumed(seed=4) != consumed(seed=3)
    marks = {LEDGER.mark(0, 0, [1]), LEDGER.mark(0, 0, [2]), LEDGER.mark(1, 0, [1]), LEDGER.mark(0, 1, [1])}
    assert len(marks) == 4
    assert LEDGER.mark(0, 5, [1, 2]) == (LEDGER.mark(0, 5, [1]) + LEDGER.mark(0, 6, [2])) % 2**64


@pytest.mark.parametrize("mark", [0, 1, 2**16, 2**48 - 1, 2**64 - 1])
def test_words_carry_a_mark_through_float32_sums_of_many_ranks(mark: int) -> None:
    total, words = torch.zeros(8), torch.tensor(to_words(mark), dtype=torch.float32)
    for _ in range(65_536):
        total += words
    assert from_words(total.tolist()) == 65_536 * mark % 2**64


def test_a_column_of_digests_gives_the_same_marks_as_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sports_ray.engine.ledger._AT_ONCE", 3)
    other = Ledger(pa.chunked_array([FILES[:4], FILES[4:]]))
    assert [other.mark(1, 2, [row]) for row in range(10)] == [LEDGER.mark(1, 2, [row]) for row in range(10)]
