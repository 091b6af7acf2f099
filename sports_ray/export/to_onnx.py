"""ONNX: for onnxruntime, and all that reads it (browsers, C#, Java, TensorRT, OpenVINO)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
import torch
from torch import nn

from sports_ray.errors import ConfigError
from sports_ray.export.description import INPUT, KEY, OUTPUT
from sports_ray.export.to_torch import program

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sports_ray.export.formats import Run

MOST_BYTES = 2_000_000_000
"""An ONNX file is one protobuf message, which holds less than 2 GiB."""


class Onnx:
    """By way of torch.export, weights inside the file."""

    def convert(self, model: nn.Module, size: int, dynamic: bool, about: str, path: Path) -> None:
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        if weights > MOST_BYTES:
            want = f"at most {MOST_BYTES / 1e9:g} GB in one ONNX file"
            raise ConfigError("--format onnx", got=f"weights of {weights / 1e9:.1f} GB", want=want, cure="--format pt2")
        graph = program(model, size, dynamic)
        converted = torch.onnx.export(graph, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
        assert converted is not None
        converted.model.metadata_props[KEY] = about
        converted.save(str(path), external_data=False)

    def load(self, path: Path) -> tuple[Run, str]:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
            return session.run([OUTPUT], {INPUT: images})[0]  # type: ignore[no-any-return]

        return run, session.get_modelmeta().custom_metadata_map.get(KEY, "")
