"""The formats, and what each needs to be installed. Light: a converter is imported when it is used."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from sports_ray.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    """Normalised images float32 [B, 3, S, S] -> logits float32 [B, classes]."""


class Converter(Protocol):
    """One format. What goes wrong inside is whatever its packages raise; `write` makes one line of it."""

    def convert(self, model: nn.Module, size: int, dynamic: bool, about: str, path: Path) -> None:
        """Writes a model in evaluation mode, float32 on the CPU, for images of `size` px, with `about` in its metadata.

        `dynamic`: for a batch of any size, else of one image. `path` does not exist, and becomes a file or a folder."""

    def load(self, path: Path) -> tuple[Run, str]:
        """What the file computes, by its own runtime, and the description that stands in it."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format by its name on the command line."""

    name: str
    suffix: str
    """Of the file; empty: it is a folder."""
    place: str
    """module:class of the converter."""
    packages: tuple[str, ...] = ()
    """What has to be importable besides sports-ray's own needs."""
    dynamic: bool = True
    """Whether a batch of any size can be had."""

    def converter(self) -> Converter:
        """Raises ConfigError that names the packages to install where some are missing."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"--format {self.name}",
                got=f"no {', '.join(missing)}",
                want=f"the extra [{self.name}]",
                cure=f"pip install 'sports-ray[{self.name}]'",
            )
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(module), name)()  # type: ignore[no-any-return]


FORMATS = {
    one.name: one
    for one in (
        Format("onnx", ".onnx", "sports_ray.export.to_onnx:Onnx", ("onnx", "onnxscript", "onnxruntime")),
        Format("pt2", ".pt2", "sports_ray.export.to_torch:ExportedProgram"),
        Format("torchscript", ".pt", "sports_ray.export.to_torch:TorchScript"),
        Format(
            "savedmodel",
            "",
            "sports_ray.export.to_tensorflow:SavedModel",
            ("litert_torch", "tensorflow"),
            dynamic=False,
        ),
        Format(
            "tflite", ".tflite", "sports_ray.export.to_litert:TfLite", ("litert_torch", "ai_edge_litert"), dynamic=False
        ),
    )
}
