"""Joint training of all widths of one network: Algorithms A.1 and A.2 of arXiv:2502.01199."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bitswitch.errors import CheckpointError, ConfigError, DivergenceError
from bitswitch.layers.table import state_of, unwrap
from bitswitch.precision import Precision, validate_widths
from bitswitch.switching import switch
from bitswitch.training import alrs as alrs_rules
from bitswitch.training import losses
from bitswitch.training import schedule as schedules
from bitswitch.training._compiled import CompiledWidths
from bitswitch.training._measured import Measured, first_not_finite, read
from bitswitch.training._modes import preserved
from bitswitch.training._pair import OptimizerPair
from bitswitch.training._scales import ScaleRule, first_bad, maxima_of
from bitswitch.training.diagnose import find_non_finite
from bitswitch.training.distill import Distillation
from bitswitch.training.distributed import rank, sum_over_processes, world_size
from bitswitch.training.optimizers import MOMENTS, BaseRates, Moments, OptimizerFactory, adam, non_negative
from bitswitch.training.samplers import Sampler, StatefulSampler, Uniform, draw
from bitswitch.training.steps import StepResult, WidthResult
from bitswitch.training.turns import TURNS, Turns, widths_at

Algorithm = Literal["per-width", "accumulate"]
Scope = Literal["weight", "weight+activation"]


@dataclass(frozen=True)
class _Pass:
    """What one width's forward and backward pass leaves behind, still on the device."""

    precision: Precision
    loss: Tensor
    task: Tensor
    distance: Tensor | None
    logits: Tensor | None


class JointTrainer:
    """Trains all widths of a prepared model together, one call of `step` a mini-batch.

    Algorithm A.2 ("per-width"): for every width, from high to low, forward, backward, and a step of two optimizers: of
    the weights at the base rate λ, with weight decay, and of the quantization scales at the rate λ_b of Adaptive
    Learning Rate Scaling, without. Algorithm A.1 ("accumulate"), the conventional one: gradients of all widths are
    added up, then there is one step; a rate of each width does not exist there, so ALRS is off.

    A parameter that belongs to one width, such as its BatchNorm or its activation scales, has no gradient while another
    width trains and is not moved then, not even by its momentum. Neither are the scales of layers that a pass skips, as
    LayerDrop and stochastic depth do, be it one layer or all.

    Args:
        model: a prepared and calibrated model; may be wrapped by `distributed.wrap_ddp` or torch.compile.
        loss_fn: "cross_entropy", or a function (model, batch) → loss or (loss, logits).
        lr: peak base learning rate λ.
        scale_lr: λ of the scales, if it differs from that of the weights: the rates of SGD are far too high for scales.
        total_steps: number of mini-batches of the whole training, for the schedule.
        bits: the widths to train; all that the model was prepared for by default.
        algorithm: "per-width" (A.2) or "accumulate" (A.1).
        alrs: form of Eq. (6), "factor" or "printed" (see `alrs.scaled`); None trains the scales at λ. "auto" is
            "factor" for A.2 and None for A.1.
        alrs_scope: whether λ_b is for the weight scales, where widths compete, or for activation scales too. Either way
            λ_b comes from the gradients of the weight scales.
        moments: Adam's moments of a weight scale: "shared" by all widths, or "separate" for each.
        weight_decay: of everything but the scales.
        optimizer: makes the weights' optimizer, called as optimizer(parameters, lr=…, weight_decay=…); Adam by default.
            The scales always have Adam.
        distill: a teacher: a float network, "self", or a `Distillation` with further settings; loss_fn must then
            return logits.
        clip_grad_norm: largest total norm of the weights' gradients; scales are not clipped.
        autocast: type for torch.autocast in the forward pass, such as torch.bfloat16; losses are float32.
        schedule: "cosine" (to 0, no warm-up), "constant", or a function (step, total_steps) → factor of λ.
        turns: "all" trains every width on every batch, as in the paper; "rotate" trains the lowest width and one of
            the others in turn, so that a batch costs two passes however many widths there are.
        sampler: draws a precision for every width's turn; uniform widths by default. Layers that share a weight draw
            once.
        compile: run forward and backward passes under torch.compile: True, or its arguments, such as
            {"mode": "max-autotune"}. Each width is compiled in its first step; batches should have one shape.

    Raises:
        PrepareError: the model is not prepared, or holds stored integers.
        PrecisionError: a width was not prepared.
        ConfigError, ArgumentError: an argument is invalid.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: losses.LossFn | Literal["cross_entropy"],
        *,
        lr: float = 5e-4,
        scale_lr: float | None = None,
        total_steps: int,
        bits: Collection[int] | None = None,
        algorithm: Algorithm = "per-width",
        alrs: alrs_rules.Form | Literal["auto"] | None = "auto",
        alrs_scope: Scope = "weight",
        moments: Moments = "shared",
        weight_decay: float = 5e-5,
        optimizer: OptimizerFactory = adam,
        distill: Distillation | nn.Module | Literal["self"] | None = None,
        clip_grad_norm: float | None = None,
        autocast: torch.dtype | None = None,
        schedule: schedules.ScheduleLike = "cosine",
        turns: Turns = "all",
        sampler: Sampler | None = None,
        compile: bool | Mapping[str, Any] = False,
    ) -> None:
        if alrs == "auto":
            alrs = None if algorithm == "accumulate" else "factor"
        _check_choices(algorithm, alrs, alrs_scope, moments, turns)
        if type(total_steps) is not int or total_steps < 1:
            raise ConfigError(f"total_steps must be a positive integer; got {total_steps!r}")
        if distill is not None and not isinstance(distill, Distillation):
            distill = Distillation(distill)
        self.model = model
        self.network = unwrap(model)
        self.bits = _checked_bits(model, bits)
        self.loss_fn = losses.resolve(loss_fn)
        self.lr = non_negative("lr", lr)
        self.scale_lr = self.lr if scale_lr is None else non_negative("scale_lr", scale_lr)
        self.total_steps = total_steps
        self.num_steps = 0
        self.distill = distill
        self.autocast = autocast
        self.schedule = schedules.resolve(schedule)
        self.turns: Turns = turns
        self.sampler: Sampler = Uniform() if sampler is None else sampler
        options = {} if isinstance(compile, bool) else compile
        self._compiled = None if compile is False else CompiledWidths(model, options)
        self._accumulate = algorithm == "accumulate"
        self._rule = ScaleRule(alrs, alrs_scope == "weight+activation", moments == "separate")
        max_norm = None if clip_grad_norm is None else non_negative("clip_grad_norm", clip_grad_norm)
        decay = non_negative("weight_decay", weight_decay)
        self._pair = OptimizerPair(self.network, optimizer, self.lr, decay, self._rule, max_norm)
        # A refused update cannot be undone. Where the host is ahead of the device, the optimizers themselves refuse it
        # and the numbers are read once a step; on a CPU, where reading costs nothing, they are read after every width.
        self._deferred = losses.device_of(self.network).type != "cpu" and self._pair.can_skip
        choices = {"algorithm": algorithm, "alrs": alrs, "alrs_scope": alrs_scope, "moments": moments, "turns": turns}
        self._settings = {**choices, "bits": list(self.bits), "optimizer": self._pair.name, **_codes(self.network)}

    @property
    def learning_rate(self) -> float:
        """The base learning rate λ of the next step."""
        return self.lr * self.schedule(self.num_steps, self.total_steps)

    def step(self, batch: Any) -> StepResult:
        """Train every width on one mini-batch, or those whose turn it is.

        The model runs in training mode; afterwards its modules have the modes, and it has the precision, that they had.

        Args:
            batch: what `loss_fn` takes.

        Raises:
            DivergenceError: a loss, the gradient of a scale or the norm of the weights' gradients is NaN or infinite.
                Nothing has been updated with it, though the widths above have finished their steps, and
                BatchNorm has seen the batch (on a GPU that of the widths below too).
            ConfigError: the schedule has ended at a learning rate of 0, or the loss does not depend on the quantized
                layers: none of the first 20 passes of this trainer gave a weight scale a gradient, or none has yet and
                one gave no parameter of the model a gradient.
        """
        factor = self.schedule(self.num_steps, self.total_steps)
        if self.num_steps >= self.total_steps and factor == 0:
            raise ConfigError(f"all {self.total_steps} steps of the schedule are done; the learning rate is 0")
        base = BaseRates(self.lr * factor, self.scale_lr * factor)
        measured: list[Measured] = []
        rows: list[dict[str, float]] = []
        with preserved(self.model, training=True):
            try:
                self._pair.zero_grad()
                teacher = self._float_teacher(batch)
                refused = None
                turn = widths_at(self.turns, self.bits, self.num_steps)
                for bits in turn:
                    done = self._forward_backward(bits, batch, teacher)
                    # The gradients of all widths (A.1) have a norm when they are added up.
                    measured.append(self._measure(bits, done, clip=not self._accumulate or bits == turn[-1]))
                    if self._deferred:
                        refused = measured[-1].refusal(refused)
                    else:
                        rows += self._read(measured[-1:], batch)
                    self._update(base, measured[-1], None if self._deferred else rows[-1], refused)
                    if teacher is None and self.distill is not None:
                        teacher = done.logits
                if self._deferred:
                    rows = self._read(measured, batch)
                if self._accumulate:
                    self._pair.update_held(base)
            finally:
                self._pair.zero_grad()
        self.num_steps += 1
        results = {item.bits: self._result(base.scales, item, row) for item, row in zip(measured, rows, strict=True)}
        return StepResult(self.num_steps - 1, base.weights, results)

    def _autocast_context(self) -> torch.autocast:
        return torch.autocast(losses.device_of(self.network).type, self.autocast, enabled=self.autocast is not None)

    def _float_teacher(self, batch: Any) -> Tensor | None:
        if self.distill is None:
            return None
        with self._autocast_context():
            return self.distill.teacher_logits(self.loss_fn, batch)

    def _forward_backward(self, bits: int, batch: Any, teacher: Tensor | None) -> _Pass:
        table = state_of(self.network).table
        precision = draw(self.sampler, table, step=self.num_steps, total_steps=self.total_steps, bits=bits)
        switch(self.network, precision)
        model = self.model if self._compiled is None else self._compiled.at(precision)
        with self._autocast_context():
            task, logits = losses.evaluate_loss(self.loss_fn, model, batch)
        total, distance = task, None
        if self.distill is not None:
            total, distance = self.distill.combine(task, logits, teacher)
        total.backward()
        distance, logits = (None if t is None else t.detach() for t in (distance, logits))
        return _Pass(precision, total.detach(), task.detach(), distance, logits)

    def _measure(self, bits: int, done: _Pass, *, clip: bool) -> Measured:
        used = self._pair.scales.in_use()
        self._pair.scales.check_reached(used)
        maxima = maxima_of(used, self._pair.scales)
        may_read = not self._deferred
        values = {
            "loss": done.loss,
            "task": done.task,
            "damping": alrs_rules.damping(maxima),
            "gradient": maxima.mean(),
            "distance": done.distance,
            "norm": self._pair.clip(read=may_read) if clip else None,
            "inputs": self._pair.scales.input_norm(read=may_read),
        }
        present = {name: value.float() for name, value in values.items() if value is not None}
        stacked = torch.stack(list(present.values()))
        if isinstance(self.model, DistributedDataParallel):
            stacked = sum_over_processes(stacked) / world_size()
        return Measured(bits, done.precision, used, maxima, tuple(present), stacked)

    def _read(self, measured: list[Measured], batch: Any) -> list[dict[str, float]]:
        """Return the numbers of passes; the only place that waits for the device.

        Raises:
            DivergenceError: one of them is not finite.
        """
        rows = read(measured)
        bad = first_not_finite(rows)
        if bad is not None:
            item = measured[bad]
            switch(self.network, item.precision)
            raise self._divergence(item, rows[bad], batch)
        return rows

    def _update(self, base: BaseRates, item: Measured, row: dict[str, float] | None, refused: Tensor | None) -> None:
        """Step the optimizers (A.2) or put the gradients of a width by (A.1)."""
        if self._accumulate:
            self._pair.hold(item.used)
        elif row is None:
            self._pair.update(base, item.used, item["damping"], refused)
        else:
            self._pair.update(base, item.used, row["damping"])

    def _result(self, scale_lr: float, item: Measured, row: dict[str, float]) -> WidthResult:
        rate = self._rule.rate(scale_lr, alrs_rules.eta(state_of(self.network).bits[0], item.bits), row["damping"])
        gradient = row["gradient"]
        scaled = gradient * rate / scale_lr if scale_lr else 0.0
        return WidthResult(
            item.precision, row["loss"], row["task"], row.get("distance"), gradient, scaled, rate, row.get("norm")
        )

    def _divergence(self, item: Measured, row: Mapping[str, float], batch: Any) -> DivergenceError:
        process = f", process {rank()}" if world_size() > 1 else ""
        where = f"at step {self.num_steps}, precision {item.precision}{process}"
        loss = row["loss"]
        if math.isfinite(loss):
            return DivergenceError(
                f"the loss is finite but the gradient of {self._diverged(item, row)} is not, {where}"
            )

        def forward() -> None:
            with self._autocast_context():
                losses.evaluate_loss(self.loss_fn, self.network, batch)

        return DivergenceError(f"the loss became {loss} {where}: {find_non_finite(self.network, forward)}")

    def _diverged(self, item: Measured, row: Mapping[str, float]) -> str:
        layer = first_bad(item.used, item.maxima)
        if layer is not None:
            return f"the weight scale of layer {layer!r}"
        if not math.isfinite(row.get("norm", 0.0)):
            return "the weights, added up over the widths," if self._accumulate else "the weights"
        return "the scale or zero point of an input"

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of both optimizers by name, not copied; with `state_meta`, all that a resume needs."""
        return self._pair.state()[0]

    def state_meta(self) -> dict[str, Any]:
        """Return the rest of the trainer's state as JSON values. The model's own state is the model's to keep."""
        meta = {"version": 1, "step": self.num_steps, "settings": self._settings, "values": self._pair.state()[1]}
        if isinstance(self.sampler, StatefulSampler):
            meta["sampler"] = self.sampler.state_dict()
        return meta

    def load_state(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Continue where `state_tensors` and `state_meta` were taken; the model must have its state of then.

        Raises:
            CheckpointError: the state is of another form, of other settings, or of another model.
        """
        if set(meta) - {"sampler"} != {"version", "step", "settings", "values"} or meta["version"] != 1:
            raise CheckpointError(f"this is not a state of a trainer; it has the fields {sorted(meta)}")
        if type(meta["step"]) is not int or meta["step"] < 0 or not isinstance(meta["values"], Mapping):
            raise CheckpointError(f"the state of a trainer has a malformed step or values: step={meta['step']!r}")
        settings = meta["settings"]
        # What older states do not name.
        former = {"turns": "all", "midrise": [], "activation_bits": []}
        if not isinstance(settings, Mapping) or {**former, **settings} != self._settings:
            raise CheckpointError(f"the state is of a trainer with {settings}; this one has {self._settings}")
        sampler = self.sampler if isinstance(self.sampler, StatefulSampler) else None
        if (sampler is None) != ("sampler" not in meta):
            kept, here = ("none", "one") if sampler is not None else ("one", "none")
            raise CheckpointError(f"the state holds {kept} of a sampler; this trainer needs {here}")
        self._pair.load_state(tensors, meta["values"])
        if sampler is not None:
            sampler.load_state_dict(meta["sampler"])
        self.num_steps = meta["step"]

    def state_dict(self) -> dict[str, Any]:
        """Return {"tensors": `state_tensors`, "meta": `state_meta`}."""
        return {"tensors": self.state_tensors(), "meta": self.state_meta()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, see `load_state`."""
        self.load_state(state["tensors"], state["meta"])


def _codes(network: nn.Module) -> dict[str, Any]:
    """Return which codes the scales of a network are for, as JSON."""
    options = state_of(network).options
    return {"midrise": list(options.midrise), "activation_bits": [list(pair) for pair in options.activation_bits]}


def _checked_bits(model: nn.Module, bits: Collection[int] | None) -> tuple[int, ...]:
    state = state_of(model)
    widths = state.bits if bits is None else validate_widths(bits)
    for width in widths:
        Precision.of(width).resolve(state.table.available)
    return widths


def _check_choices(algorithm: object, alrs: object, alrs_scope: object, moments: object, turns: object) -> None:
    for name, value, allowed in (
        ("algorithm", algorithm, get_args(Algorithm)),
        ("alrs", alrs, (*alrs_rules.FORMS, None)),
        ("alrs_scope", alrs_scope, get_args(Scope)),
        ("moments", moments, MOMENTS),
        ("turns", turns, TURNS),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} must be one of {allowed}; got {value!r}")
    if algorithm == "accumulate" and (alrs is not None or moments != "shared"):
        raise ConfigError("algorithm='accumulate' takes one step for all widths: use alrs=None and moments='shared'")
