"""PyTorch's own formats: torch.export's program (.pt2) and TorchScript (.pt)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sports_ray.export.description import FILE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sports_ray.export.formats import Run


class Named(nn.Module):
    """A model whose input is called images, in every format that keeps names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)  # type: ignore[no-any-return]


def example(size: int, dynamic: bool) -> Tensor:
    """What a model is traced with. Of a batch of one image, a size that may change would be taken for a fixed one."""
    return torch.zeros(2 if dynamic else 1, 3, size, size)


def program(model: nn.Module, size: int, dynamic: bool) -> torch.export.ExportedProgram:
    """The model as a graph of torch's operators."""
    batch = {"images": {0: torch.export.Dim("batch")}} if dynamic else None
    return torch.export.export(Named(model), (example(size, dynamic),), dynamic_shapes=batch)


class ExportedProgram:
    """torch.export. Without example inputs, which would stand in the file as a pickle: it holds JSON and raw tensors."""

    def convert(self, model: nn.Module, size: int, dynamic: bool, about: str, path: Path) -> None:
        graph = program(model, size, dynamic)
        graph.example_inputs = None
        torch.export.save(graph, str(path), extra_files={FILE: about})

    def load(self, path: Path) -> tuple[Run, str]:
        extra = {FILE: ""}
        return _run(torch.export.load(str(path), extra_files=extra).module()), extra[FILE]


class TorchScript:
    """A trace. PyTorch calls it deprecated; phones and C++ programs still read it."""

    def convert(self, model: nn.Module, size: int, dynamic: bool, about: str, path: Path) -> None:
        with torch.no_grad():
            traced = torch.jit.trace(Named(model).eval(), example(size, dynamic), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path), _extra_files={FILE: about})  # type: ignore[no-untyped-call]

    def load(self, path: Path) -> tuple[Run, str]:
        extra = {FILE: ""}
        module = torch.jit.load(str(path), _extra_files=extra)  # type: ignore[no-untyped-call]
        found: str | bytes = extra[FILE]
        return _run(module), found.decode() if isinstance(found, bytes) else found


def _run(module: nn.Module) -> Run:
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return run
