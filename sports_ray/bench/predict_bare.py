"""The loop that a competent engineer writes to predict a folder of photographs, in a process of its own.

Photographs are decoded and cropped by the very functions that the prediction path uses, so that the two differ in nothing
but the path. `python -m sports_ray.bench.predict_bare RUN FOLDER BATCH WORKERS PRECISION FILE` writes images per second.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sports_ray.bench.figure import middle_rate
from sports_ray.data.augment import evaluate
from sports_ray.data.decode import decode
from sports_ray.engine.learner import DTYPES
from sports_ray.predict.member import Member, find_member, load_model


def bare_predict_turn(member: Member, folder: Path, batch: int, workers: int, environment: Mapping[str, str]) -> float:
    """Images per second of `bare_predictions_per_second` in a new process, which our settings do not reach."""
    with tempfile.TemporaryDirectory(prefix="sports-ray-bare-") as place:
        report = Path(place, "images_per_second")
        words = [f"{member.store}/{member.run}", str(folder), str(batch), str(workers), member.precision, str(report)]
        subprocess.run([sys.executable, "-m", "sports_ray.bench.predict_bare", *words], check=True, env=environment)
        return float(report.read_text())


class Photographs(Dataset[Tensor]):
    """uint8 [3, S, S] of each file below a folder."""

    def __init__(self, folder: Path, member: Member) -> None:
        self._paths, self._member = sorted(path for path in folder.rglob("*") if path.is_file()), member

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        spec = self._member.spec
        pixels = decode(self._paths[index].read_bytes(), max_pixels=self._member.max_pixels)
        return evaluate(pixels, spec, spec.eval_size).contiguous()


def bare_predictions_per_second(member: Member, folder: Path, batch: int, workers: int, precision: str) -> float:
    """Predicts all photographs below a folder, on all cores; the speed is that of the middle half."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(member, device)
    mean, std = (torch.tensor(one, device=device).view(3, 1, 1) * 255 for one in (member.spec.mean, member.spec.std))
    loader = DataLoader(Photographs(folder, member), batch, num_workers=workers, pin_memory=device.type == "cuda")
    done, logits = [], []
    with torch.inference_mode():
        for pixels in loader:
            images = (pixels.to(device, torch.float32) - mean) / std
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32"):
                output = model(images)
            logits.append(output.float().cpu())
            done.append((time.perf_counter(), len(pixels)))
    return middle_rate(done)


if __name__ == "__main__":
    run, where, size, processes, dtype, file = sys.argv[1:]
    speed = bare_predictions_per_second(find_member(run, "runs"), Path(where), int(size), int(processes), dtype)
    Path(file).write_text(str(speed))
