"""The sensitivity of every layer as a value: estimated traces with their standard errors, saved as JSON."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from bitswitch._files import parse_json, write_file
from bitswitch._files.documents import canonical_json
from bitswitch._plan import weighted_nodes
from bitswitch.errors import BitswitchWarning, ConfigError
from bitswitch.layers.adapters import adapt
from bitswitch.layers.registry import has_weight
from bitswitch.layers.table import PARAMETER, ModelState, unwrap

VERSION = 1
# How many standard errors an estimate must be away from zero to count as different from it.
SIGNIFICANT = 2.0


@dataclass(frozen=True)
class Trace:
    """An estimated trace.

    Attributes:
        value: the estimate.
        error: its standard error.
        size: number of elements that the trace is over.
    """

    value: float
    error: float
    size: int

    @property
    def is_zero(self) -> bool:
        """Whether the estimate is within two standard errors of zero."""
        return abs(self.value) <= SIGNIFICANT * self.error


@dataclass(frozen=True)
class Sensitivity(Mapping[str, float]):
    """Traces of the layers of a model; as a mapping, layer name → estimated trace.

    Attributes:
        layers: traces with respect to the layers' weights, in the order of the model.
        method: "hessian" or "gauss-newton".
        num_probes: random vectors that were used for every layer.
        num_examples: distinct examples that the loss was taken over.
        fingerprint: of the network's structure, see `fingerprint`.
        inputs: traces with respect to the layers' inputs, per example, if they were asked for. Its sizes are the
            elements of one example.
    """

    layers: Mapping[str, Trace]
    method: str = "hessian"
    num_probes: int = 0
    num_examples: int = 0
    fingerprint: str = ""
    inputs: Mapping[str, Trace] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        return self.layers[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def largest_relative_error(self) -> float:
        """The largest standard error of a layer relative to its trace; layers that count as zero are left out."""
        found = [t.error / abs(t.value) for t in self.layers.values() if not t.is_zero]
        return max(found, default=0.0)

    def usable(self, names: Mapping[str, Any]) -> dict[str, float]:
        """Return the traces of some layers as a search may use them: none negative.

        An estimate within two standard errors of zero counts as zero, with a warning.

        Args:
            names: the layers, by name.

        Raises:
            ConfigError: a layer is missing, its estimate is NaN or infinite, or clearly negative.
        """
        return _usable(self.layers, names, "")

    def usable_inputs(self, names: Mapping[str, Any]) -> dict[str, float]:
        """Return the traces with respect to the inputs of some layers, as `usable` does.

        Raises:
            ConfigError: as `usable`.
        """
        return _usable(self.inputs, names, "the input of ")

    def to_json(self) -> dict[str, Any]:
        """Return the sensitivity as JSON values."""
        return {
            "format": "bitswitch-sensitivity",
            "version": VERSION,
            "method": self.method,
            "num_probes": self.num_probes,
            "num_examples": self.num_examples,
            "fingerprint": self.fingerprint,
            "layers": {name: asdict(trace) for name, trace in self.layers.items()},
            "inputs": {name: asdict(trace) for name, trace in self.inputs.items()},
        }

    @classmethod
    def from_json(cls, value: object) -> Sensitivity:
        """Rebuild a sensitivity from `to_json`.

        Raises:
            ConfigError: `value` is not of that form.
        """
        empty = cls({}).to_json()
        if not isinstance(value, Mapping) or set(value) != set(empty) or value["format"] != empty["format"]:
            raise ConfigError(f"this is no sensitivity; it must have the fields {', '.join(empty)}")
        if value["version"] != VERSION:
            raise ConfigError(f"a sensitivity of version {VERSION} is expected; found {value['version']!r}")
        for name, kind in (("method", str), ("fingerprint", str), ("num_probes", int), ("num_examples", int)):
            if type(value[name]) is not kind:
                raise ConfigError(f"the field {name!r} of a sensitivity is invalid: {str(value[name])[:80]!r}")
        return cls(
            _traces(value["layers"]),
            value["method"],
            value["num_probes"],
            value["num_examples"],
            value["fingerprint"],
            _traces(value["inputs"]),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sensitivity to a JSON file, which appears complete or not at all.

        Raises:
            ArgumentError: an estimate is not finite, so there is nothing worth keeping.
        """
        write_file(Path(path), canonical_json(self.to_json()) + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module | None = None) -> Sensitivity:
        """Read a sensitivity from a JSON file.

        Args:
            path: the file.
            model: a float or prepared model that it must belong to.

        Raises:
            ConfigError: the file is missing, is no sensitivity, or belongs to another model.
            CheckpointError: it is not JSON.
        """
        try:
            raw = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"the sensitivity {path} cannot be read: {error.strerror}") from None
        sensitivity = cls.from_json(parse_json(raw, str(path)))
        if model is not None:
            sensitivity.check_fits(model)
        return sensitivity

    def check_fits(self, model: nn.Module) -> None:
        """Check that the sensitivity belongs to a model of this structure.

        Raises:
            ConfigError: it does not.
        """
        if self.fingerprint and self.fingerprint != fingerprint(model):
            known = set(structure(model))
            odd = next((name for name in self.layers if name not in known), None)
            detail = f"; it has a layer {odd!r}, which this model does not have" if odd else ""
            raise ConfigError(f"the sensitivity was estimated for another model{detail}")


def structure(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return (kind, weight shape) of every weighted layer of a float or prepared model, the same for both."""
    state = unwrap(model).__dict__.get("_bitswitch")
    if isinstance(state, ModelState):
        layers = [e for e in state.table.values() if e.status != "per-width" and e.kind != PARAMETER]
        return {e.name: (e.kind, e.shape) for e in layers}
    network = copy.deepcopy(unwrap(model))
    adapt(network)
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, module in weighted_nodes(network):
        if has_weight(module):
            weight = module._parameters.get("weight")
            found[name] = (type(module).__name__, () if weight is None else tuple(weight.shape))
    return found


def fingerprint(model: nn.Module) -> str:
    """Return a hash of a network's structure: names, kinds and weight shapes of its layers, but not their values.

    A float model, its prepared copy and a trained SuperNet of it have the same one.
    """
    rows = sorted([name, kind, list(shape)] for name, (kind, shape) in structure(model).items())
    return hashlib.sha256(canonical_json(rows)).hexdigest()


def _usable(traces: Mapping[str, Trace], names: Mapping[str, Any], what: str) -> dict[str, float]:
    result: dict[str, float] = {}
    zero: list[str] = []
    for name in names:
        trace = traces.get(name)
        if trace is None:
            raise ConfigError(f"the sensitivity has no trace for {what}layer {name!r}")
        if not math.isfinite(trace.value) or not math.isfinite(trace.error):
            raise ConfigError(f"the sensitivity of {what}layer {name!r} is {trace.value} ± {trace.error}")
        if trace.value < 0 and not trace.is_zero:
            raise ConfigError(
                f"the Hessian trace of {what}layer {name!r} is clearly negative "
                f"({trace.value:.4g} ± {trace.error:.2g}): the network is not at a minimum there. Use the "
                "Gauss–Newton trace, which cannot be negative "
                '(method="gauss-newton")'
            )
        if trace.is_zero and trace.value != 0:
            zero.append(name)
        result[name] = 0.0 if trace.is_zero else trace.value
    if zero:
        shown = ", ".join(zero[:5]) + (", …" if len(zero) > 5 else "")
        warnings.warn(
            f"{len(zero)} trace estimates are within two standard errors of zero and count as zero ({what}{shown}); "
            "more probes or data would tell",
            BitswitchWarning,
            stacklevel=4,
        )
    return result


def _traces(value: object) -> dict[str, Trace]:
    if not isinstance(value, Mapping):
        raise ConfigError("the layers of a sensitivity must be a mapping")
    for name, row in value.items():
        fits = isinstance(row, Mapping) and set(row) == {"value", "error", "size"} and type(row["size"]) is int
        if not fits or not all(type(row[key]) in (int, float) for key in ("value", "error")):
            raise ConfigError(f"the sensitivity of layer {str(name)[:80]!r} is malformed")
    return {name: Trace(float(row["value"]), float(row["error"]), row["size"]) for name, row in value.items()}
