"""HASB: Hessian-aware stochastic bit-switching, Algorithms 1 and A.3 of arXiv:2502.01199."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bitswitch.errors import ConfigError
from bitswitch.mixed.sensitivity import Sensitivity
from bitswitch.precision import Precision, validate_widths

Threshold = Literal["mean", "log-median", "smooth"]


def roulette_probabilities(trace: float, threshold: float, bits: Sequence[int], *, smooth: bool = False) -> list[float]:
    """Return the probability of every width in a roulette draw (Algorithm 1).

    A layer whose trace is below the threshold draws uniformly; another one draws b_i with probability b_i / Σ b, so
    that sensitive layers see high widths more often.

    Args:
        trace: t_l.
        threshold: t_m.
        bits: the candidate widths.
        smooth: draw b_i with a probability proportional to b_i^w, w = t_l / (t_l + t_m), instead. The two cases of the
            algorithm are the limits w = 0 and w = 1, and layers with nearly the same trace draw nearly alike. Ours.

    >>> roulette_probabilities(1.0, 2.0, (4, 3, 2))
    [0.3333333333333333, 0.3333333333333333, 0.3333333333333333]
    >>> roulette_probabilities(3.0, 2.0, (4, 4, 2))
    [0.4, 0.4, 0.2]
    """
    power = (trace / (trace + threshold) if trace else 0.0) if smooth else float(trace >= threshold)
    weights = [b**power for b in bits]
    return [weight / sum(weights) for weight in weights]


def threshold_of(traces: Sequence[float], kind: Threshold | float) -> float:
    """Return the trace that separates insensitive layers from sensitive ones.

    Args:
        traces: of all layers, not negative.
        kind: "mean", the paper's; "log-median", the median of the logarithms, below which half of the layers are
            whatever a single large trace does to the mean, and which is also the middle for "smooth"; or a number.

    Raises:
        ConfigError: the kind is unknown, or a number that is negative or NaN.
    """
    if isinstance(kind, (int, float)) and not isinstance(kind, bool):
        if not kind >= 0:
            raise ConfigError(f"threshold must not be negative or NaN; got {kind!r}")
        return float(kind)
    if kind == "mean":
        # Exact before it is rounded once: the mean of equal traces must not come out above them.
        return statistics.mean(traces)
    if kind in ("log-median", "smooth"):
        ordered = sorted(traces)
        low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
        return high if low == high else math.sqrt(low) * math.sqrt(high)
    raise ConfigError(f"threshold must be 'mean', 'log-median', 'smooth' or a number; got {kind!r}")


class HASB:
    """Sampler of per-layer widths for `bitswitch.JointTrainer(sampler=…)`: SuperNet training, Algorithm A.3.

    When the width b has its turn, every layer keeps b, or with probability σ takes a roulette draw instead (see
    `roulette_probabilities`), independently of the others. σ grows with the epoch and is not compounded:
    σ_e = σ_max·(e + 1)/E. Layers that were prepared for one width keep it.

    Draws depend on nothing but the seed, the step and the width, so a resumed training draws what it would have drawn,
    and all processes draw the same.

    Args:
        sensitivity: t_l by layer: a `Sensitivity`, or any mapping.
        total_epochs: E; the steps of the training are divided into as many equal epochs.
        sigma: σ_max, 0 … 1.
        threshold: t_m: "mean" of the traces as in the paper, "log-median", or a number; or "smooth", for no threshold
            at all (see `roulette_probabilities`).
        aliases: {layer: layer that stores its weight}, for layers that share a weight and so draw once. A
            `JointTrainer` knows them; give them to draw without one.
        seed: of the draws.

    Raises:
        ConfigError: an argument is out of range, or a trace is NaN or clearly negative.
    """

    def __init__(
        self,
        sensitivity: Mapping[str, float],
        *,
        total_epochs: int,
        sigma: float = 1.0,
        threshold: Threshold | float = "mean",
        aliases: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        if type(total_epochs) is not int or total_epochs < 1:
            raise ConfigError(f"total_epochs must be a positive integer; got {total_epochs!r}")
        if not isinstance(sigma, (int, float)) or not 0 <= sigma <= 1:
            raise ConfigError(f"sigma must lie between 0 and 1; got {sigma!r}")
        self.total_epochs = total_epochs
        self.sigma = float(sigma)
        self.threshold: Threshold | float = threshold
        self.seed = seed
        self._aliases = dict(aliases or {})
        self._sensitivity = sensitivity
        self._traces: dict[str, float] | None = None
        threshold_of([1.0], threshold)

    def sigma_at(self, step: int, total_steps: int) -> float:
        """Return σ at a step: σ_max·(epoch + 1)/total_epochs."""
        epoch = min(step * self.total_epochs // max(1, total_steps), self.total_epochs - 1)
        return self.sigma * (epoch + 1) / self.total_epochs

    def sample(self, *, step: int, total_steps: int, bits: int, layers: Mapping[str, tuple[int, ...]]) -> Precision:
        """Return the precision to train in the place of the uniform width `bits`; see `JointTrainer`.

        Args:
            step: number of the training step, from 0.
            total_steps: length of the training in steps.
            bits: the width whose turn it is.
            layers: the widths that every quantized layer was prepared for.

        Raises:
            ConfigError: a layer has no usable trace.
        """
        free = [name for name, widths in layers.items() if len(widths) > 1 and name not in self._aliases]
        traces = self._traces_of(free)
        threshold = threshold_of(list(traces.values()), self.threshold) if traces else 0.0
        sigma = self.sigma_at(step, total_steps)
        # A string, because seeding with a tuple is no longer possible, and the hash of one is not stable.
        generator = random.Random(f"{self.seed}/{step}/{bits}")
        drawn: dict[str, int] = {}
        for name in free:
            # Two numbers for every layer, used or not, so that σ does not change what the other layers draw.
            keep, position = generator.random(), generator.random()
            widths = layers[name]
            drawn[name] = bits if keep >= sigma else self._spin(position, widths, traces[name], threshold)
        for name, owner in self._aliases.items():
            if name in layers and len(layers[name]) > 1 and owner in drawn:
                drawn[name] = drawn[owner]
        return Precision.of(drawn, default=bits)

    def _spin(self, position: float, widths: Sequence[int], trace: float, threshold: float) -> int:
        """Return the width at a position 0 … 1 of the roulette wheel."""
        reached = 0.0
        ordered = validate_widths(widths)
        probabilities = roulette_probabilities(trace, threshold, ordered, smooth=self.threshold == "smooth")
        for bits, probability in zip(ordered, probabilities, strict=True):
            reached += probability
            if position < reached:
                return bits
        return ordered[-1]

    def _traces_of(self, names: Sequence[str]) -> dict[str, float]:
        if self._traces is None or list(self._traces) != list(names):
            self._traces = _checked(self._sensitivity, names)
        return self._traces


class UniformSampling(HASB):
    """As `HASB` without the Hessian: a layer that does not keep its width draws every width equally often.

    It is what HASB is compared with.

    Args:
        total_epochs: as for `HASB`.
        sigma: as for `HASB`.
        aliases: as for `HASB`.
        seed: as for `HASB`.
    """

    def __init__(
        self, *, total_epochs: int, sigma: float = 1.0, aliases: Mapping[str, str] | None = None, seed: int = 0
    ) -> None:
        super().__init__({}, total_epochs=total_epochs, sigma=sigma, threshold=math.inf, aliases=aliases, seed=seed)

    def _traces_of(self, names: Sequence[str]) -> dict[str, float]:
        # All below an infinite threshold, where the roulette is uniform.
        return dict.fromkeys(names, 0.0)


def _checked(sensitivity: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    if isinstance(sensitivity, Sensitivity):
        return sensitivity.usable(dict.fromkeys(names))
    found: dict[str, float] = {}
    for name in names:
        value: Any = sensitivity.get(name)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ConfigError(
                f"the sensitivity of layer {name!r} must be finite and not negative; it is {value!r}"
                + ("" if name in sensitivity else "; name layers that share the weight of another one in aliases=")
            )
        found[name] = float(value)
    return found
