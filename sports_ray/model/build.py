"""Builds timm models: names and aliases, input size, preprocessing, head and frozen parts."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sports_ray.config import ImageSpec, ModelConfig
from sports_ray.errors import ConfigError, WeightsError
from sports_ray.model.eager_timm import (
    PretrainedCfg,
    get_pretrained_cfg,
    is_model,
    resolve_data_config,
    split_model_name_tag,
    timm,
)
from sports_ray.model.head import LINEAR, replace_head
from sports_ray.model.shapes import shapes_only

ALIASES = {
    "convnext_large": "convnext_large.fb_in22k_ft_in1k",
    "swinv2_large": "swinv2_large_window12to24_192to384.ms_in22k_ft_in1k",
    "swinv2_large_256": "swinv2_large_window12to16_192to256.ms_in22k_ft_in1k",
}
# Names seen in the field, and torchvision's, for which string distance alone would offer another model.
WRONG_NAMES = {
    "swinv2_large_window12_384": ALIASES["swinv2_large"],
    "swinv2_base_window12_384": "swinv2_base_window12to24_192to384.ms_in22k_ft_in1k",
    "vit_b_16": "vit_base_patch16_224",
    "vit_b16": "vit_base_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
    "regnet_y_400mf": "regnety_004",
    "mobilenet_v3_large": "mobilenetv3_large_100",
}
STRIDES = (2, 4, 7, 8, 14, 16, 28, 32, 56, 64)


def resolve_name(name: str) -> str:
    """A timm model name for an alias or a timm name (with or without its `.tag`).

    Raises WeightsError with the nearest known name when timm has no such model or no such tag.
    """
    name = ALIASES.get(name, name)
    architecture, tag = split_model_name_tag(name)
    if is_model(architecture) and (not tag or _has_tag(name)):
        return name
    near = _nearest(name)
    raise WeightsError(
        "model.name",
        got=repr(name),
        want=f"a timm {timm.__version__} model or one of {', '.join(ALIASES)}",
        cure=f"did you mean {near}?" if near else "list names with `sports-ray models FILTER`",
    )


def _has_tag(name: str) -> bool:
    try:
        return get_pretrained_cfg(name, allow_unregistered=False) is not None
    except RuntimeError:
        return False


def _nearest(name: str) -> str:
    architecture = split_model_name_tag(name)[0]
    if architecture in WRONG_NAMES:
        return WRONG_NAMES[architecture]
    names = [*ALIASES, *timm.list_models(), *timm.list_models(pretrained=True)]
    if is_model(architecture):
        names = timm.list_models(f"{architecture}.*", pretrained=True)
    close = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(architecture, names, n=1)
    return close[0] if close else ""


def create(model: ModelConfig, num_classes: int, image_size: int = 0, *, sure: bool = False) -> nn.Module:
    """A randomly initialised timm model with `num_classes` outputs; `image_size` in px, 0: the model's own.

    Models whose input size is fixed at build (ViT, Swin) are built for `image_size`. Draws from torch's generator. `sure`:
    the model takes that size, as whoever made the plan has found out; trying it loads torch's compiler, for seconds.
    Raises WeightsError for an unknown name and ConfigError for a size that the model cannot take.
    """
    name = resolve_name(model.name)
    if image_size and image_size != own_size(name) and not sure:
        _check_size(name, image_size)
    sizes = _size_arguments(name, image_size)
    rates: dict[str, Any] = {"drop_rate": model.drop, "drop_path_rate": model.drop_path}
    built = _created(name, {"num_classes": num_classes, **sizes}, rates)
    if model.head != LINEAR:
        replace_head(built, model.head, num_classes)
    return built


def _created(name: str, sizes: dict[str, Any], rates: dict[str, Any]) -> nn.Module:
    try:
        # Zeros are passed on too: Swin's own default is a drop path of 0.1.
        return timm.create_model(name, **sizes, **rates)
    except TypeError:
        asked = {key: rate for key, rate in rates.items() if rate}
    try:
        return timm.create_model(name, **sizes, **asked)
    except TypeError as error:
        raise ConfigError(
            f"model {name}",
            got=error,
            want="settings that this model knows",
            cure="set model.drop and model.drop_path to 0",
        ) from error


def pretrained_cfg(name: str) -> PretrainedCfg:
    """timm's record of a model: input size, preprocessing and where its weights are."""
    cfg = get_pretrained_cfg(resolve_name(name))
    return cfg if cfg is not None else PretrainedCfg()


def own_size(name: str) -> int:
    """Side of the image that a model was made for, px."""
    return pretrained_cfg(name).input_size[-1]


def _size_arguments(name: str, image_size: int) -> dict[str, Any]:
    fixed = pretrained_cfg(name).fixed_input_size
    return {"img_size": image_size} if fixed and image_size and image_size != own_size(name) else {}


def _check_size(name: str, size: int) -> None:
    error = _refusal(name, size)
    if not error:
        return
    for stride in STRIDES:
        low = size // stride * stride
        fitting = [near for near in (low, low + stride) if near and not _refusal(name, near)]
        if len(fitting) == 2 or (fitting and fitting == [low + stride] and low == 0):
            want, sizes = f"a multiple of {stride}", " or ".join(map(str, fitting))
            break
    else:
        want = sizes = str(own_size(name))
    raise ConfigError(
        f"image size of {name}", got=f"{size} ({error})", want=want, cure=f"--set data.image_size={sizes}"
    )


@cache
def _refusal(name: str, size: int) -> str:
    """Why a model cannot take square images of this size, found by running it without data; empty: it can."""
    try:
        with shapes_only():
            model = timm.create_model(name, **_size_arguments(name, size)).eval()
        with torch.no_grad():
            model(torch.empty(1, 3, size, size, device="meta"))
    except (AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def image_spec(
    model: nn.Module | str, image_size: int = 0, crop_mode: str = "auto", crop_pct: float = 0.0
) -> ImageSpec:
    """Preprocessing of a model (or its name), as timm resolves it; `image_size` in px, 0: the model's own; the crop of
    evaluation as `data.crop_mode` and `data.crop_pct` say.

    Without an `image_size`, evaluation uses the model's test size and test crop where it has them; with one, that size.
    """
    given: dict[str, Any] = pretrained_cfg(model).to_dict() if isinstance(model, str) else model.pretrained_cfg  # type: ignore[assignment]
    test_size = not image_size and not given.get("fixed_input_size", False)
    crop = {"crop_mode": None if crop_mode == "auto" else crop_mode, "crop_pct": crop_pct or None}
    asked = {"img_size": image_size or None, **crop}
    train = resolve_data_config(asked, pretrained_cfg=given)
    evaluation = resolve_data_config(asked, pretrained_cfg=given, use_test_size=test_size)
    return ImageSpec(
        train_size=train["input_size"][-1],
        eval_size=evaluation["input_size"][-1],
        crop_pct=evaluation["crop_pct"],
        crop_mode=evaluation["crop_mode"],
        interpolation=evaluation["interpolation"],
        mean=tuple(evaluation["mean"]),
        std=tuple(evaluation["std"]),
    )


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, frozen ones included, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the classifier's parameters; several classifiers (distilled models) count together."""
    return head_tensors(model) & {name for name, _ in model.named_parameters()}


def head_tensors(model: nn.Module) -> set[str]:
    """Names of the classifier's tensors: its parameters, and the statistics of its normalisation layers."""
    heads = model.get_classifier()  # type: ignore[operator]
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    modules = [head for head in heads if isinstance(head, nn.Module)]
    ids = {id(tensor) for head in modules for tensor in (*head.parameters(), *head.buffers())}
    return {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in ids}


def trainable(model: nn.Module, pattern: str) -> list[str]:
    """Lets only matching parameters learn (`requires_grad`) and returns their names in the model's order.

    `pattern` is `head` (the classifier) or a shell pattern over names; `*` is all. Raises ConfigError if none matches.
    """
    head = head_parameters(model) if pattern == "head" else set()
    names = [name for name, _ in model.named_parameters() if name in head or fnmatchcase(name, pattern)]
    if not names:
        examples = ", ".join(name for name, _ in list(model.named_parameters())[-3:])
        want = f"head or a shell pattern over names such as {examples}"
        raise ConfigError("loop.phases: train", got=repr(pattern), want=want)
    chosen = set(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return names


def set_train_mode(model: nn.Module, frozen: Collection[str] = ()) -> None:
    """Training mode, except for normalisation layers all of whose parameters are named in `frozen`.

    In training mode those would go on averaging batches into their running statistics, although they do not learn.
    """
    model.train()
    if frozen:
        for norm in frozen_norms(model, frozen):
            norm.eval()


def frozen_norms(model: nn.Module, frozen: Collection[str]) -> Iterator[nn.Module]:
    """Normalisation layers whose parameters are all frozen; one without any follows its nearest ancestor with some."""
    names, frozen = [name for name, _ in model.named_parameters()], frozenset(frozen)
    for path, module in model.named_modules():
        if not isinstance(module, _NormBase):
            continue
        while path and not any(name.startswith(path + ".") for name in names):
            path = path.rpartition(".")[0]
        inside = [name for name in names if not path or name.startswith(path + ".")]
        if inside and frozen.issuperset(inside):
            yield module
