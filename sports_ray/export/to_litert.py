"""TensorFlow Lite (LiteRT): for phones and small boards. The description travels as a zip at the file's end, as TFLite's do."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import litert_torch
from ai_edge_litert.interpreter import Interpreter
from torch import nn

from sports_ray.export.description import FILE
from sports_ray.export.to_torch import Named, example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sports_ray.export.formats import Run


class TfLite:
    """One image at a time, planes of colour first, as the model was trained."""

    def convert(self, model: nn.Module, size: int, dynamic: bool, about: str, path: Path) -> None:
        litert_torch.convert(Named(model).eval(), sample_kwargs={"images": example(size, dynamic)}).export(str(path))
        with zipfile.ZipFile(path, "a") as added:
            added.writestr(FILE, about)

    def load(self, path: Path) -> tuple[Run, str]:
        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
        (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()

        def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
            interpreter.set_tensor(given["index"], images)
            interpreter.invoke()
            return interpreter.get_tensor(found["index"])  # type: ignore[no-any-return]

        return run, zipfile.ZipFile(path).read(FILE).decode()
