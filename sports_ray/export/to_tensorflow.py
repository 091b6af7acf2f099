"""TensorFlow's SavedModel: the graph as StableHLO, which TensorFlow compiles (XlaCallModule), weights as its variables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from litert_torch.backend import tf_integration
from litert_torch.backend.export import exported_program_to_mlir
from torch import nn

from sports_ray.export.description import FILE, INPUT, OUTPUT
from sports_ray.export.to_torch import program

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sports_ray.export.formats import Run

EXTRA = "assets.extra"
"""Where TensorFlow leaves room in a SavedModel for others' files."""


class SavedModel:
    """One image at a time, with the signature serving_default: images -> logits.

    For a batch of any size the lowering to StableHLO fails: it asks for shapes that are numbers."""

    def convert(self, model: nn.Module, size: int, dynamic: bool, about: str, path: Path) -> None:
        lowered = exported_program_to_mlir(program(model, size, dynamic), inline_constants=False)
        module = tf.Module()
        module.weights = tf_integration._build_tf_state_dict(lowered)  # held by the module, or they are not saved
        call = tf_integration._wrap_as_tf_func(lowered, module.weights)
        shape = tf.TensorSpec([1, 3, size, size], tf.float32, name=INPUT)

        def serve(images: Any) -> dict[str, Any]:
            return {OUTPUT: call(images)[0]}

        module.serve = tf.function(serve, input_signature=[shape])
        tf.saved_model.save(module, str(path), signatures={"serving_default": module.serve})
        (path / EXTRA).mkdir()
        (path / EXTRA / FILE).write_text(about, encoding="utf-8")

    def load(self, path: Path) -> tuple[Run, str]:
        loaded = tf.saved_model.load(str(path))
        serve = loaded.signatures["serving_default"]

        def run(images: NDArray[np.float32], _keep: Any = loaded) -> NDArray[np.float32]:
            return serve(**{INPUT: tf.constant(images)})[OUTPUT].numpy()  # type: ignore[no-any-return]

        return run, (path / EXTRA / FILE).read_text(encoding="utf-8")
