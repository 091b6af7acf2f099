"""What a run leaves for people: its speed, its log, TensorBoard scalars, the facts of its machine."""

from __future__ import annotations

import ctypes
import logging
import platform
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sports_ray.errors import StorageError
from sports_ray.store.run_dir import RunDir

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

WINDOW = 30


@dataclass(slots=True)
class Speed:
    """Images per second over the last steps, evaluations left out."""

    times: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    total_images: int = 0
    """Of all steps but the first, which pays for what is made once."""
    total_seconds: float = 0.0
    """As long as those steps took; stalls by commits included, evaluations not."""
    total_stall: float = 0.0
    _last: float = field(default_factory=time.perf_counter)
    _shown: float = 0.0

    def step(self, images: int) -> float:
        """Takes note of a step; how many seconds it took."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        if self.times:
            self.total_images += images
            self.total_seconds += seconds
        self.times.append((seconds, images))
        return seconds

    def pause(self) -> None:
        """Leaves the time since the last step out of the next one's."""
        self._last = time.perf_counter()

    def stall(self, seconds: float) -> None:
        self.total_stall += seconds

    @property
    def images_per_second(self) -> float:
        seconds = sum(item[0] for item in self.times)
        return sum(item[1] for item in self.times) / seconds if seconds else 0.0

    def due(self, every: float = 0.25) -> bool:
        """Whether it is time to show the state again."""
        now = time.perf_counter()
        if now - self._shown < every:
            return False
        self._shown = now
        return True


def write_scalars(run_dir: RunDir, history: Sequence[Mapping[str, Any]]) -> None:
    """Writes the history as TensorBoard scalars under tensorboard/. Never fails a run: metrics.jsonl holds them too."""
    if not history:
        return
    from tensorboardX import SummaryWriter

    try:
        # Its writing thread would end in a traceback where the store is full: the file is made elsewhere.
        with tempfile.TemporaryDirectory() as folder:
            with SummaryWriter(folder) as writer:
                for line in history:
                    for name, value in line.items():
                        if isinstance(value, (int, float)) and name not in ("epoch", "step"):
                            writer.add_scalar(name, value, line["step"])
            run_dir.storage.delete("tensorboard")
            for file in Path(folder).iterdir():
                run_dir.storage.write(f"tensorboard/{file.name}", file.read_bytes())
    except (OSError, StorageError) as error:
        logger.warning("tensorboard: not written: %s", error)


def system_facts(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the run's record: bits are promised for equal ones only."""
    import torch

    packages = (
        "sports-ray",
        "torch",
        "torchvision",
        "timm",
        "ray",
        "numpy",
        "pillow",
        "simplejpeg",
        "pyarrow",
        "safetensors",
    )
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "versions": {name: _version(name) for name in packages},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
        facts["gpu"]["driver"] = _driver_version()
    return facts


def _driver_version() -> str:
    """Of NVIDIA's driver, as its own library says (nvmlSystemGetDriverVersion); empty where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(80)
        failed = library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(text, len(text))
    except (OSError, AttributeError):
        return ""
    return "" if failed else text.value.decode(errors="replace")


class _LogFile(logging.FileHandler):
    """Lines that cannot be written, on a full disk, are lost: logging would print a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def log_to_file(run_dir: RunDir, name: str) -> None:
    """Sends this process's log to a file of the run, where the store is a local folder."""
    folder = run_dir.local_path("logs")
    package = logging.getLogger("sports_ray")
    package.setLevel(logging.INFO)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    handler = _LogFile(folder / name)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    package.handlers = [handler]
    package.propagate = False


def time_facts(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums up timings.jsonl: {`sessions`, `seconds` of training and evaluation, `commits`, `stall_seconds`}."""
    ends = [event for event in events if event["kind"] == "end"]
    commits = [event for event in events if event["kind"] == "commit"]
    return {
        "sessions": sum(event["kind"] == "start" for event in events),
        "seconds": round(sum(event["seconds"] for event in ends), 1),
        "commits": len(commits),
        "stall_seconds": round(sum(event["stall"] for event in commits), 3),
    }
