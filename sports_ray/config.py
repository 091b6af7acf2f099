"""One run's settings: frozen dataclasses, checked at birth. `recipe.py` reads them from TOML, flags and overrides.

Values of "auto" (or 0, where said) are settled once, when the run is created, and recorded in `run.json`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sports_ray.checked import INFINITE, Checked, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """How a model wants its pictures, as timm resolves it."""

    train_size: int
    """Side of a training image, px."""
    eval_size: int
    """Side of an evaluation image, px."""
    crop_pct: float
    """Share of the resized image's side that the evaluation crop takes."""
    crop_mode: str
    """center, squash or border."""
    interpolation: str
    """bilinear or bicubic."""
    mean: tuple[float, float, float]
    """RGB mean, in [0, 1]."""
    std: tuple[float, float, float]
    """RGB standard deviation, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(Checked):
    root: str = ""
    """Folder with train/ (and val/, test/), or a CSV list with columns path, label, split."""
    labels: Literal["auto", "single", "multi"] = "auto"
    """Of a CSV list: one class a photograph, or several: a column labels with | or ; between them, or a column of 0 and 1 for
    each class. auto: several where a column labels holds a separator, or where there are such columns and no label."""
    train: str = "train"
    """Name of the training split's folder."""
    val: str = "auto"
    """Folder of the validation split; auto: val, valid or validation if there, else carved from train; carve: always."""
    test: str = "test"
    """Folder of the test split, which training never reads."""
    classes: tuple[str, ...] = ()
    """Subset of classes, by name or shell pattern; empty: all."""
    image_size: int = 0
    """Side of the training image in pixels; 0: the model's own."""
    crop_mode: Literal["auto", "center", "squash", "border"] = "auto"
    """How evaluation fits a photograph into its square, as timm's --crop-mode; auto: as the model was made for."""
    crop_pct: float = 0.0
    """Share of the resized image's side that evaluation keeps, as timm's --crop-pct; 0: as the model was made for."""
    val_fraction: float = 0.15
    """Share of train carved for validation where there is none, in (0, 0.5]."""
    folds: int = 0
    """Cut train and val together into so many folds, of which one validates; 0: no. `sports-ray folds` trains on each."""
    fold: int = 0
    """The fold that validates, from 0 to folds - 1."""
    sampler: Literal["shuffle", "weighted"] = "shuffle"
    """shuffle: an epoch has each training image once; weighted: as many images, of each class the same number."""
    min_per_class: int = 0
    """Copies make up for what a class of train has less than so many images, each augmented by itself; 0: none."""
    leaks: Literal["refuse", "drop", "allow"] = "refuse"
    """What to do when a file of train stands byte for byte in a held-out split; drop takes it out of train."""
    max_bad_fraction: float = 0.01
    """Share of unreadable files that training goes on without, in [0, 1]."""
    max_pixels: int = 178_956_970
    """Images with more pixels are refused as bombs."""
    loader_processes: int = -1
    """Processes that decode and augment, for each worker; -1: chosen from the cores, 0: in the training process."""
    cache_gb: float = -1.0
    """Memory in GiB, a worker, for decoded images; -1: a tenth of what is free, shared by a machine's workers, 0: none."""
    pack_cache: str = ""
    """Folder of each machine where packs from s3:// and gs:// are kept; empty: sports-ray/packs in the user's cache."""
    pack_cache_gb: float = -1.0
    """Most GiB of packs kept there, the least recently used go first; -1: nine tenths of what its disk has room for."""

    LIMITS: ClassVar[Limits] = {
        "image_size": (0, 4096),
        "crop_pct": (0, 1),
        "val_fraction": (0.001, 0.5),
        "folds": (0, 1000),
        "fold": (0, 999),
        "min_per_class": (0, 100_000_000),
        "max_bad_fraction": (0, 1),
        "max_pixels": (1, INFINITE),
        "loader_processes": (-1, 256),
        "pack_cache_gb": (-1, INFINITE),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(Checked):
    name: str = ""
    """A timm model, or one of the aliases convnext_large, swinv2_large, swinv2_large_256."""
    weights: str = "auto"
    """auto: the pretrained weights of timm's hub; none: from scratch; or a path to .safetensors or .pth."""
    drop_path: float = 0.0
    """Stochastic depth at the last block, in [0, 1)."""
    drop: float = 0.0
    """Dropout before the classifier, in [0, 1)."""
    head: str = "linear"
    """linear: one layer, the model's own; or more, as words such as 512-relu-dropout0.5-linear, see model/head.py."""
    channels_last: bool = True
    """Keep images and convolution weights in NHWC memory order."""
    compile: bool = False
    """Use torch.compile. It may choose other kernels after a restart: bitwise resume is not promised."""

    LIMITS: ClassVar[Limits] = {
        "drop_path": (0, 0.99),
        "drop": (0, 0.99),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig(Checked):
    """Training images only; evaluation is deterministic. Every draw is a function of (seed, epoch, position)."""

    crop: Literal["random", "center", "squash"] = "random"
    """random: random-resized crop; center: as in evaluation; squash: all of the image, its sides brought to the square's."""
    crop_scale: tuple[float, float] = (0.35, 1.0)
    """Share of the image's area that a random crop covers."""
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    """Width over height of a random crop."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    policy: str = "none"
    """none, auto (AutoAugment), or rand-mM-nN: N operations of RandAugment at magnitude M of 10, each with probability 1/2."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation, in [0, 1]."""
    rotate: float = 0.0
    """Largest rotation in degrees."""
    zoom: float = 0.0
    """Largest relative zoom in or out, in [0, 1)."""
    erasing: float = 0.0
    """Probability of erasing a random rectangle (Zhong et al. 2017)."""
    mixup: float = 0.0
    """Alpha of mixup's Beta(alpha, alpha) (Zhang et al. 2018); 0: off."""
    cutmix: float = 0.0
    """Alpha of cutmix's Beta(alpha, alpha) (Yun et al. 2019); 0: off."""
    mix_prob: float = 1.0
    """Probability that a lane is mixed at all; with both on, each is chosen half of the time."""
    mix_off_epochs: int = 0
    """The last epochs, in which mixup and cutmix are off."""
    smoothing: float = 0.1
    """Label smoothing, in [0, 1); of multi-label data towards 1/2."""

    LIMITS: ClassVar[Limits] = {
        "hflip": (0, 1),
        "vflip": (0, 1),
        "color_jitter": (0, 1),
        "rotate": (0, 180),
        "zoom": (0, 0.99),
        "erasing": (0, 1),
        "mixup": (0, 100),
        "cutmix": (0, 100),
        "mix_prob": (0, 1),
        "mix_off_epochs": (0, INFINITE),
        "smoothing": (0, 0.99),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig(Checked):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 0.0
    """Peak learning rate; 0: 4e-3 * sqrt(batch / 32) from scratch, 1e-4 * sqrt(batch / 128) from weights."""
    weight_decay: float = 0.05
    """Decoupled for adamw; never applied to 1-D parameters."""
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    """Nesterov momentum of sgd, in [0, 1)."""
    layer_decay: float = 1.0
    """Factor on the rate for each layer group away from the head (timm's groups are per block), in (0, 1]."""
    clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    schedule: Literal["cosine", "step", "onecycle", "constant"] = "cosine"
    warmup_epochs: float = 1.0
    """Linear warm-up from a hundredth of the rate (not for onecycle, which has its own)."""
    min_lr: float = 0.01
    """Floor of the schedule, as a fraction of lr."""
    step_epochs: float = 5.0
    """For step: epochs between drops."""
    step_gamma: float = 0.1
    """For step: factor of a drop."""

    LIMITS: ClassVar[Limits] = {
        "lr": (0, 100),
        "weight_decay": (0, 10),
        "momentum": (0, 0.9999),
        "layer_decay": (0.01, 1),
        "clip": (0, INFINITE),
        "warmup_epochs": (0, INFINITE),
        "min_lr": (0, 1),
        "step_epochs": (1e-6, INFINITE),
        "step_gamma": (0, 1),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaConfig(Checked):
    enabled: bool = True
    decay: float = 0.0
    """Weight kept at each optimiser step, in [0, 1); 0: 1 - 1 / steps per epoch."""
    warmup: bool = True
    """Use min(decay, (1 + t) / (10 + t)) at update t."""

    LIMITS: ClassVar[Limits] = {
        "decay": (0, 0.9999999),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseConfig(Checked):
    """A part of the run in which only some parameters learn, at a constant rate; after the last one all learn."""

    epochs: int = 1
    train: str = "head"
    """head, or a shell pattern over parameter names."""
    lr_scale: float = 1.0
    """Factor on optim.lr."""

    LIMITS: ClassVar[Limits] = {
        "epochs": (1, INFINITE),
        "lr_scale": (0, INFINITE),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionConfig(Checked):
    """More epochs for a run that was planned shorter. What was planned before is carried out first, as it was planned."""

    after: int = 1
    """Epochs that the run had until then."""
    schedule: Literal["stretch", "restart", "hold"] = "stretch"
    """The rate from there on. stretch: as if the run had been planned so long from the start; restart: optim.schedule anew,
    warm-up included; hold: what the run ended with."""

    LIMITS: ClassVar[Limits] = {
        "after": (1, INFINITE),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig(Checked):
    """Of multi-label data, one sigmoid a class; where a photograph shows one class the loss is cross-entropy."""

    multilabel: Literal["bce", "focal"] = "bce"
    """Binary cross-entropy, or focal loss (Lin et al. 2017), which counts less what is nearly right already."""
    gamma: float = 2.0
    """Of focal: how much less."""
    alpha: float = -1.0
    """Of focal: weight of a positive, 1 - alpha of a negative, in [0, 1]; -1: both 1."""
    pos_weight: Literal["none", "balanced"] = "none"
    """Factor on positives; balanced: negatives over positives of each class among the training images."""
    pos_weight_most: float = 100.0
    """Largest such factor; the smallest is one over it."""

    LIMITS: ClassVar[Limits] = {
        "gamma": (0, 100),
        "alpha": (-1, 1),
        "pos_weight_most": (1, INFINITE),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig(Checked):
    epochs: int = 30
    global_batch: int = 32
    """Samples of one optimiser step, over all workers."""
    lanes: int = 4
    """Fixed equal slices of the global batch; workers take whole lanes, so this is also the most workers."""
    micro_batch: int = 0
    """Samples of one forward pass; 0: all that a worker has. Halved when memory runs out."""
    eval_batch: int = 64
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    seed: int = 0
    deterministic: bool = True
    """On a GPU, use only kernels that give the same bits each time; false is faster and gives up bitwise resume."""
    strict: bool = False
    """Compute lane by lane and sum in a fixed tree: the same bits at any number of workers, at a cost in speed."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: the loss of an image counts n / (K n_c): n images of an epoch, K classes, n_c images of its own class."""
    early_stop: int = 0
    """Stop after this many evaluations without a better score; 0: never."""
    early_stop_metric: Literal["acc1", "loss"] = "acc1"
    """What early stopping and the best checkpoint look at, on the validation split; acc1 of multi-label data: mAP."""
    max_nonfinite: int = 20
    """Steps in a row with a loss or gradient that is not finite before training stops with an error."""
    phases: tuple[PhaseConfig, ...] = ()
    extensions: tuple[ExtensionConfig, ...] = ()
    """Recorded when a run gets more epochs: `sports-ray resume RUN --epochs N --extend SCHEDULE`."""

    LIMITS: ClassVar[Limits] = {
        "epochs": (1, 1_000_000),
        "global_batch": (1, 1_000_000),
        "lanes": (1, 65_536),
        "micro_batch": (0, 1_000_000),
        "eval_batch": (1, 1_000_000),
        "eval_every": (1, INFINITE),
        "seed": (0, 2**63 - 1),
        "early_stop": (0, INFINITE),
        "max_nonfinite": (1, INFINITE),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig(Checked):
    root: str = "runs"
    """Folder or URI (s3://, gs://) that holds the runs."""
    run: str = ""
    """Name of the run; empty: model + digest."""
    every_steps: int = 0
    """Commit after this many steps; 0: by time alone."""
    every_seconds: Literal["auto"] | float = "auto"
    """Commit after this many seconds; auto: as often as wastes least, from what a commit costs; 0: by steps alone."""
    keep: int = 3
    """Newest checkpoints to keep; the best is kept besides."""
    keep_epochs: tuple[int, ...] = ()
    """Epochs at whose end a checkpoint is made that is never deleted, such as 10, 20, 50."""
    max_unsaved_seconds: float = 1800.0
    """While the store fails training goes on, until so much of it would be lost; then the run pauses."""

    LIMITS: ClassVar[Limits] = {
        "every_steps": (0, INFINITE),
        "every_seconds": (0, INFINITE),
        "keep": (1, 1_000_000),
        "max_unsaved_seconds": (1, INFINITE),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig(Checked):
    workers: str = "auto"
    """0: in this process, without Ray; N; MIN:MAX: elastic; auto: one for each GPU, or 1."""
    address: str = "auto"
    """Ray cluster to join; auto: a running one if RAY_ADDRESS is set, else a local one of its own."""
    cpus_per_worker: float = 0.0
    """CPUs that Ray reserves for a worker; 0: all cores of this machine shared out."""
    gpus: int = -1
    """GPUs that workers take, one each; -1: those of the machine of the driver. A cluster's head may have none: say how many."""
    threads: int = 0
    """Threads of one tensor operation; 0: the cores shared out. Another number may change the last bits."""
    max_failures: int = 3
    """Crashes in a row without progress before giving up; preemptions are not counted."""
    mtbf: float = 14400.0
    """Seconds between two deaths without notice, as assumed by store.every_seconds = auto; preemptible machines live for
    hours (4 h), those on demand for weeks."""
    time_budget: float = 0.0
    """Seconds after which the run pauses by itself; 0: no limit."""
    start_timeout: float = 300.0
    """Seconds to wait for workers, at the start or after a loss, before giving up."""
    hang_seconds: float = 60.0
    """Least seconds without a step after which a worker counts as hung; slow steps get 20 times as long as they take,
    and with `model.compile` any step at least 900 s."""
    resize_seconds: float = 60.0
    """Seconds between two looks for more nodes, where workers are MIN:MAX."""
    usage_stats: bool = False
    """Let Ray report its usage statistics."""

    LIMITS: ClassVar[Limits] = {
        "cpus_per_worker": (0, INFINITE),
        "gpus": (-1, 65536),
        "threads": (0, 4096),
        "max_failures": (0, INFINITE),
        "mtbf": (60, INFINITE),
        "time_budget": (0, INFINITE),
        "start_timeout": (1, INFINITE),
        "hang_seconds": (0.1, INFINITE),
        "resize_seconds": (1, INFINITE),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
