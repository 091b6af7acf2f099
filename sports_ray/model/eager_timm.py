"""timm without torch's compiler: the one place that imports it, for all that use it.

`import timm` loads torch._dynamo, sympy and 900 modules more: 1.7 of the 4.3 s of processor time that imports take of a
process's start, though nothing is compiled unless `model.compile` says so. It is only named there, by torchvision.ops and
by a decorator; whatever does need it finds it. (torch's optimisers load it too: see `optim.take_step`.)
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.compiler

__all__ = [
    "PretrainedCfg",
    "check_cached_file",
    "download_cached_file",
    "get_pretrained_cfg",
    "group_parameters",
    "hf_split",
    "is_model",
    "resolve_data_config",
    "split_model_name_tag",
    "timm",
]

_COMPILER = "torch._dynamo"


class _Later(ModuleType):
    """Stands for a module of the compiler until something of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for those of every module
            raise AttributeError(name)
        _forget()
        return getattr(importlib.import_module(self.__name__), name)


def _forget() -> None:
    for name in [name for name, module in sys.modules.items() if isinstance(module, _Later)]:
        del sys.modules[name]


@contextmanager
def _compiler_later() -> Iterator[None]:
    """In the block modules are imported that name the compiler and do not use it."""
    if _COMPILER in sys.modules:
        yield
        return
    package, utils = _Later(_COMPILER), _Later(f"{_COMPILER}.utils")
    package.__path__ = [str(Path(torch.__file__).parent / "_dynamo")]  # another part of it may be named too
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules |= {_COMPILER: package, utils.__name__: utils}
    disable, torch.compiler.disable = torch.compiler.disable, _disable  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = disable
        _forget()


def _is_compile_supported(device: str) -> bool:
    return bool(importlib.import_module(f"{_COMPILER}.utils").is_compile_supported(device))


def _disable(function: Callable[..., Any] | None = None, recursive: bool = True, **words: Any) -> Any:
    """As torch.compiler.disable, which loads the compiler when it decorates; this one when the function is called."""
    return torch._disable_dynamo(function, recursive)


with _compiler_later():
    import timm
    from timm.data import resolve_data_config
    from timm.models import PretrainedCfg, get_pretrained_cfg, group_parameters, is_model, split_model_name_tag
    from timm.models._hub import check_cached_file, download_cached_file, hf_split
