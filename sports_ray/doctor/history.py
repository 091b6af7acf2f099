"""What a run left behind: memory that ran out, steps that were skipped, evaluations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import torch

from sports_ray.doctor.check import Check
from sports_ray.doctor.patient import Patient

SKIPPED = 0.02
"""Share of steps that may be skipped; fp16 skips some at the start to find its loss scale."""

_Run = partial(Check, "run")


def check_history(patient: Patient) -> Iterator[Check]:
    """All checks of this module."""
    yield _memory(patient)
    yield _skipped(patient)
    yield _finite(patient)


def _memory(patient: Patient) -> Check:
    """Whether memory ran out: the commit remembers a micro-batch that was halved, the logs every time."""
    asked, now = patient.config.loop.micro_batch, patient.progress.micro_batch
    times = _in_logs(patient, "out of memory")
    if now == asked and not times:
        return _Run("memory", "it never ran out")
    whole = asked or patient.config.loop.global_batch
    got = (
        f"it ran out: {now or whole} images at once in place of {whole}" if now != asked else "it ran out in evaluation"
    )
    got += f", {times} times by the logs" if times else ""
    cure = (
        f"--set loop.micro_batch={now}"
        if now != asked
        else f"--set loop.eval_batch={patient.config.loop.eval_batch // 2}"
    )
    cure += " from the start of the next run; a smaller data.image_size, or bf16, needs less too"
    return _Run("out of memory", got, "look", "memory for what was asked", cure)


def _in_logs(patient: Patient, words: str) -> int:
    folder = patient.run_dir.local_path("logs")
    count = 0
    with suppress(OSError):
        for path in sorted(folder.glob("*.log")) if folder else ():
            count += path.read_text(errors="replace").count(f"{words}")
    return count


def _skipped(patient: Patient) -> Check:
    skipped, steps = patient.progress.skipped, max(1, patient.progress.step)
    if skipped <= max(SKIPPED * steps, 20 if patient.learner.precision == "fp16" else 0):
        return _Run("steps", f"{steps:,}, {skipped} skipped")
    got = f"{skipped} of {steps:,} steps were skipped"
    cure = f"--set optim.lr={patient.lr / 10:.1g}, --set optim.clip=1, or --precision bf16"
    return _Run("loss or gradients not finite", got, "bad", f"at most {SKIPPED:.0%}", cure)


def _finite(patient: Patient) -> Check:
    for name, value in patient.weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            cure = f"start over with --set optim.lr={patient.lr / 10:.1g} under another --run NAME"
            got = f"{name} at step {patient.progress.step} holds values that are not finite"
            return _Run("exploded weights", got, "bad", "finite weights", cure)
    return _Run("weights", f"{len(patient.weights)} tensors at step {patient.progress.step}, all finite")
