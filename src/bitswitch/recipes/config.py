"""What a recipe says, as plain data: frozen, JSON-able, and cheap to import."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from bitswitch.errors import BitswitchError, ConfigError
from bitswitch.precision import validate_widths

DATA_VARIABLE = "BITSWITCH_DATA"


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str
    """Own model, "torchvision/<name>" or "timm/<name>"."""
    num_classes: int | None = None
    """Outputs; None for the model's own default."""
    options: dict[str, int | float | bool | str] = field(default_factory=dict)
    """Further arguments of its constructor."""


@dataclass(frozen=True)
class DataConfig:
    """The images."""

    kind: Literal["digits", "cifar10", "folder"]
    """Digits of scikit-learn, CIFAR-10 files, or a folder with train/ and val/ that have a sub-folder a class."""
    folder: str | None = None
    """Where they are; None takes the environment variable BITSWITCH_DATA."""
    download: bool = False
    """Let torchvision fetch CIFAR-10 if it is not there."""
    augment: bool = True
    """Random crops (and flips, except for digits) in training."""
    image_size: int = 224
    """Height and width in pixels, for folder."""
    num_workers: int | None = None
    """Processes that decode images of a folder; None for as many as there are processors, at most 8."""
    validation: int | None = None
    """Keep so many training images out (rounded within each class), for search, choices and the accuracies on the way;
    not for folder."""
    split_seed: int = 0
    """Chooses the held-out fifth of the digits, and the validation images."""
    max_train: int | None = None
    """Use only so many training images, drawn at random, for a quick trial."""
    max_eval: int | None = None
    """Use only so many held-out images, drawn at random."""


@dataclass(frozen=True)
class StartConfig:
    """The float network that joint training starts from."""

    pretrained: bool = False
    """Start from the weights of torchvision or timm."""
    pretrained_tag: str | None = None
    """Which weights of torchvision, such as IMAGENET1K_V1; None for its default."""
    weights: str | None = None
    """Start from a local file of float weights (.safetensors, or a state dict of torch.save)."""
    checkpoint: str | None = None
    """Start joint training from what another one has learned: a finished run folder (its float weights and its float
    network, as far as they are there), or a checkpoint folder (its integers)."""
    new_head: bool = False
    """Accept weights whose last layer is for other classes."""
    epochs: int = 0
    """Train or fine-tune it for so many epochs first."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or SGD with Nesterov momentum 0.9."""
    lr: float = 1e-3
    """Peak learning rate, with cosine decay to 0."""
    weight_decay: float = 5e-5
    """Weight decay."""
    batch_size: int = 128
    """Images a step, over all processes together."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""


@dataclass(frozen=True)
class PrepareConfig:
    """How the network is made switchable."""

    bits: tuple[int, ...] = (8, 6, 4, 2)
    """Candidate widths; the largest is stored."""
    skip: tuple[str, ...] = ()
    """Layers to leave in full precision: names or patterns such as "layer1.*"."""
    force: tuple[str, ...] = ()
    """Layers to quantize although they are first or last."""
    first_last: Literal["float", 8] = "float"
    """First and last layer in full precision, or pinned to 8 bits."""
    granularity: Literal["tensor", "channel", "group"] = "tensor"
    """What shares a weight scale."""
    group_size: int | None = None
    """Inputs that share a scale, for group."""
    activations: bool = True
    """Quantize the inputs of layers too."""
    batch_norm: Literal["per-width", "transitional"] = "per-width"
    """BatchNorm of every width, or of every pair of its own width and the next layer's."""
    shared: bool = True
    """One weight scale for all widths."""
    scale_parametrization: Literal["log", "raw"] = "log"
    """Learn ln s, or s itself as in the paper."""
    gradient_scale: bool = False
    """Multiply scale gradients by LSQ's 1/√(N·p)."""
    activation_bits: tuple[int, ...] = ()
    """Widths of inputs, as many as bits and in their order; none for those of the weights."""
    midrise: tuple[int, ...] = ()
    """Widths at which weights have symmetric levels without zero, such as 2."""
    calibration_batches: int = 8
    """Training batches that set the activation scales."""

    def codes_of(self, width: int) -> tuple[bool, int]:
        """Return whether weights of a width are mid-rise, and the width of their inputs."""
        inputs = dict(zip(self.bits, self.activation_bits, strict=False))
        return width in self.midrise, inputs.get(width, width)


@dataclass(frozen=True)
class JointConfig:
    """Joint training of all widths."""

    epochs: int = 90
    """Passes over the training images."""
    batch_size: int = 256
    """Images a step, over all processes together."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Of everything but the scales: Adam, or SGD with Nesterov momentum 0.9."""
    lr: float = 5e-4
    """Peak base learning rate λ."""
    scale_lr: float | None = None
    """Peak base learning rate of the scales, which have Adam always; None for that of the weights."""
    weight_decay: float = 5e-5
    """Weight decay, of everything but the scales."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning-rate schedule."""
    algorithm: Literal["per-width", "accumulate"] = "per-width"
    """A step a width (Algorithm A.2), or one step for all (A.1)."""
    turns: Literal["all", "rotate"] = "all"
    """Widths of a batch: all, or the lowest and one of the others in turn."""
    alrs: Literal["factor", "printed", "off"] = "factor"
    """Form of Adaptive Learning Rate Scaling, Eq. (6)."""
    alrs_scope: Literal["weight", "weight+activation"] = "weight"
    """Which scales have a rate of each width."""
    moments: Literal["shared", "separate"] = "shared"
    """Adam's moments of the weight scales."""
    distill: Literal["none", "float", "self"] = "none"
    """Teacher: none, the float network, or the highest width."""
    distill_weight: float = 1.0
    """Weight of the divergence from the teacher."""
    temperature: float = 1.0
    """Temperature of the distillation."""
    task_weight: float = 1.0
    """Weight of the task's own loss where there is a teacher."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    clip_grad_norm: float | None = None
    """Largest norm of the weights' gradients."""
    sampler: Literal["off", "hasb", "uniform"] = "off"
    """SuperNet training (Algorithm A.3): layers draw widths of their own, by sensitivity or all alike."""
    sigma: float = 1.0
    """Probability in the last epoch that a layer draws; it grows from 0 with the epoch."""
    threshold: Literal["mean", "log-median", "smooth"] = "mean"
    """Trace from which a layer counts as sensitive, for hasb; smooth knows degrees."""
    sensitivity: str | None = None
    """File of traces for hasb; None estimates them from the float network on 1024 training images."""


@dataclass(frozen=True)
class RunConfig:
    """How it is run."""

    seed: int = 0
    """Of initial weights, shuffling, augmentation and dropout."""
    device: Literal["auto", "cpu"] = "auto"
    """GPU if there is one, or the CPU."""
    autocast: Literal["off", "bfloat16"] = "off"
    """Type of the forward passes in training."""
    channels_last: bool = False
    """Memory format of images and convolutions."""
    compile: bool = False
    """Run joint training under torch.compile, one graph a width; needs a C++ compiler, or a GPU."""
    deterministic: bool = True
    """Refuse operations that give other results in every run; they are rare on CPUs."""
    eval_batch_size: int = 128
    """Images a step of evaluation, over all processes together."""
    evaluate_every: int = 1
    """Epochs between evaluations at every width."""
    log_every: int = 50
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 500
    """Steps between training checkpoints; there is one at the end of every epoch too."""


@dataclass(frozen=True)
class Recipe:
    """A complete job: float network, joint training, checkpoint, evaluation."""

    name: Annotated[str, tyro.conf.Suppress]
    model: ModelConfig
    data: DataConfig
    start: StartConfig
    prepare: PrepareConfig
    joint: JointConfig
    run: RunConfig

    def check(self) -> Recipe:
        """Return the recipe itself.

        Raises:
            ConfigError: a value is out of its range; the message names the field.
        """
        try:
            validate_widths(self.prepare.bits)
        except BitswitchError as error:
            raise ConfigError(f"prepare.bits: {error}") from None
        for section, names, least in _LOWER_BOUNDS:
            for name in names:
                value = getattr(getattr(self, section), name)
                # Written so that NaN fails too.
                if value is not None and not (least <= value < float("inf")):
                    raise ConfigError(f"{section}.{name} must be at least {least}; got {value}")
        reserved = sorted(_NAMED_ELSEWHERE.keys() & self.model.options.keys())
        if reserved:
            raise ConfigError(f"model.options cannot have {reserved[0]!r}; use {_NAMED_ELSEWHERE[reserved[0]]}")
        if self.start.pretrained and self.start.weights is not None:
            raise ConfigError("start.pretrained and start.weights exclude each other")
        if not self.joint.sigma <= 1:
            raise ConfigError(f"joint.sigma must be at most 1; got {self.joint.sigma}")
        if self.joint.sensitivity is not None and self.joint.sampler != "hasb":
            raise ConfigError("joint.sensitivity is for joint.sampler=hasb")
        if self.data.validation is not None and self.data.kind == "folder":
            raise ConfigError("data.validation is not for data.kind=folder")
        if self.joint.algorithm == "accumulate" and (self.joint.alrs != "off" or self.joint.moments != "shared"):
            raise ConfigError(
                "joint.algorithm=accumulate takes one step for all widths: "
                "joint.alrs must be off, and joint.moments shared"
            )
        if (self.prepare.granularity == "group") != (self.prepare.group_size is not None):
            raise ConfigError("prepare.group_size is for prepare.granularity=group, which needs it")
        for section in ("start", "joint"):
            if not getattr(self, section).label_smoothing <= 1:
                raise ConfigError(f"{section}.label_smoothing must be at most 1")
        return self

    def replace(self, **sections: dict[str, object]) -> Recipe:
        """Return a copy in which fields of sections have other values: `recipe.replace(joint={"epochs": 3})`."""
        changed = {name: dataclasses.replace(getattr(self, name), **values) for name, values in sections.items()}
        return dataclasses.replace(self, **changed)


# Arguments of `build_model` that have fields of their own.
_NAMED_ELSEWHERE = {
    "name": "model.name",
    "num_classes": "model.num-classes",
    "pretrained": "start.pretrained",
    "weights": "start.weights",
    "new_head": "start.new-head",
}

_LOWER_BOUNDS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("data", ("image_size", "max_train", "max_eval", "validation"), 1),
    ("data", ("num_workers", "split_seed"), 0),
    ("start", ("epochs", "lr", "weight_decay", "label_smoothing"), 0),
    ("start", ("batch_size",), 1),
    ("prepare", ("calibration_batches", "group_size"), 1),
    (
        "joint",
        ("epochs", "lr", "scale_lr", "weight_decay", "label_smoothing", "distill_weight", "task_weight", "sigma"),
        0,
    ),
    ("joint", ("temperature", "clip_grad_norm"), 1e-6),
    ("joint", ("batch_size",), 1),
    ("run", ("eval_batch_size", "evaluate_every", "log_every", "checkpoint_every"), 1),
    ("run", ("seed",), 0),
)
