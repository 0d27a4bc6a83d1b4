"""The engine: a network that executes integers, at a precision that calls and threads can choose."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from bitswitch.errors import MissingPlanesError, PrepareError
from bitswitch.layers.table import EngineState, ModelState
from bitswitch.precision import Precision
from bitswitch.runtime.cache import DerivedCache
from bitswitch.runtime.configuration import Active, Configuration, Executor
from bitswitch.runtime.convert import make_integer
from bitswitch.runtime.executors import choose_executor
from bitswitch.runtime.stored import PlaneReader, StoredWeight
from bitswitch.switching import norm_keys

# Precisions that are kept beside the live one; per-call mixed maps are the only way to more.
_MOST_CONFIGURATIONS = 64


class Engine(nn.Module):
    """A deployed network; `bitswitch.deploy` makes it.

    Call it like the network, with `precision=` for a precision of that one call. `bitswitch.switch(engine, …)` changes
    the precision for later calls; calls that are running in other threads finish at theirs. It has no float weights in
    its quantized layers, runs on the CPU, always in evaluation mode, and computes no gradients.

    Its `state_dict` has the scales, biases, normalisations and layers left in floats, but not the planes. Loading it
    back changes nothing. That of another engine does not bring the planes that it belongs to, and what has been folded
    into affine maps stays as it was: deploy the other model instead.

    Args:
        network: a prepared network of the engine's own; it is changed in place.
        state: what is known of it.
        weights: stored weights by layer.
        reader: where missing planes can be read, or None.
        cache: of what is derived from the weights.
        fuse: whether to run the network as a graph if it can be turned into one.
        active: what integer layers ask for their configuration, if the network has been converted.
        lock: held while planes are read, by all engines that share the stored weights.
    """

    def __init__(
        self,
        network: nn.Module,
        state: ModelState,
        weights: Mapping[str, StoredWeight],
        reader: PlaneReader | None,
        cache: DerivedCache,
        *,
        fuse: bool = True,
        active: Active | None = None,
        lock: threading.RLock | None = None,
    ) -> None:
        super().__init__()
        self._active = Active() if active is None else active
        self._lock = threading.RLock() if lock is None else lock
        # Plain containers, whose single operations need no lock.
        self._recent: dict[Precision, Configuration] = {}
        self._gone: set[tuple[str, int]] = set()
        self._weights = dict(weights)
        self._reader = reader
        self.cache = cache
        cache.notify(self._forget)
        if active is None:
            make_integer(network, state, weights, self._active)
        self.network = network
        self.training = False
        self._fuse = fuse
        self._executor: Executor = choose_executor(network, self._weights, cache, fuse=fuse)
        self.__dict__["_bitswitch"] = EngineState(
            state.bits,
            state.table,
            state.precision,
            state.options,
            calibrated=True,
            switch_to=self._switch_to,
            note=lambda: self.plan.partition("\n")[0],
        )
        self._switch_to(state.precision)

    @property
    def precision(self) -> Precision:
        """The precision of calls that do not give their own."""
        return self._live.precision

    @property
    def plan(self) -> str:
        """How the network is run, for people."""
        return self._executor.describe()

    @property
    def _live(self) -> Configuration:
        live = self._active.live
        assert live is not None
        return live

    def forward(self, *args: Any, precision: int | Mapping[str, int] | Precision | None = None, **kwargs: Any) -> Any:
        """Run the network.

        Args:
            *args: of the network.
            precision: the precision of this call; by default that of the last switch.
            **kwargs: of the network.

        Raises:
            PrecisionError, UnknownLayerError, ArgumentError, MissingPlanesError: as `bitswitch.switch`.
            ArgumentError: an integer layer has an input that is not on the CPU.
            PrepareError: it is being traced or exported.
        """
        if torch.compiler.is_dynamo_compiling():
            return _run_uncompiled(self, args, {"precision": precision, **kwargs})  # pyright: ignore[reportCallIssue]
        if _is_traced(args, kwargs):
            raise PrepareError(
                "an engine cannot be traced or exported: its kernels are no operations of PyTorch; "
                "export the network that it was deployed from"
            )
        configuration = self._live if precision is None else self._configuration(Precision.of(precision))
        local = self._active.local
        outer = getattr(local, "configuration", None)
        local.configuration = configuration
        # Kernels run on as many threads as PyTorch has set, which it does in a new thread when it is first asked.
        torch.get_num_threads()
        try:
            with torch.no_grad():
                if not torch.is_autocast_enabled("cpu"):
                    return self._executor.run(configuration, args, kwargs)
                with torch.autocast("cpu", enabled=False):
                    return self._executor.run(configuration, args, kwargs)
        finally:
            local.configuration = outer

    def _switch_to(self, precision: Precision) -> None:
        with self._lock:
            configuration = self._configuration(precision)
            self._active.live = configuration
            self.__dict__["_bitswitch"].precision = precision

    def _configuration(self, precision: Precision) -> Configuration:
        # What is known has been checked.
        found = self._recent.get(precision)
        if found is None:
            with self._lock:
                found = self._recent.get(precision) or self._make(precision)
        return found

    def _make(self, precision: Precision) -> Configuration:
        state: EngineState = self.__dict__["_bitswitch"]
        resolved = state.table.resolve(precision, self.network)
        self._read_missing(resolved)
        norms = norm_keys(state, precision, resolved)
        parts = {*resolved.items(), *((self._weights[name].name, bits) for name, bits in resolved.items())}
        self._gone.clear()
        bound = self._executor.bind(resolved, norms)
        configuration = Configuration(precision, resolved, norms, frozenset(parts), bound=bound)
        # Kept only while all that it is made of is within the cache's limit.
        if not self._gone & configuration.parts:
            self._recent[precision] = configuration
            while len(self._recent) > _MOST_CONFIGURATIONS:
                self._recent.pop(next(iter(self._recent)), None)
        return configuration

    def _forget(self, key: Any) -> None:
        """Drop the configurations that are made of something that has left the cache."""
        part = key[1:3]
        self._gone.add(part)
        for precision, configuration in list(self._recent.items()):
            if part in configuration.parts:
                self._recent.pop(precision, None)

    def _read_missing(self, resolved: Mapping[str, int]) -> None:
        """Append the planes that widths need, all of them or none."""
        wanted: dict[str, range] = {}
        for name, bits in resolved.items():
            weight = self._weights[name]
            missing = weight.missing(bits)
            if missing and len(missing) > len(wanted.get(weight.name, ())):
                wanted[weight.name] = missing
        if not wanted:
            return
        if self._reader is None:
            names = ", ".join(repr(name) for name in list(wanted)[:5])
            raise MissingPlanesError(f"bit planes are missing that this precision needs, of the layers {names}")
        found = self._reader.read_planes(wanted)
        for name, planes in found.items():
            self._weights[name].append(planes)

    def train(self, mode: bool = True) -> Engine:
        """Stay in evaluation mode."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Engine:
        problem = "cannot be moved to another device or cast"
        try:
            probe = fn(torch.zeros(1, dtype=torch.float32, device="cpu"))
        except Exception as error:  # a device that is not there, in the words of its backend
            raise PrepareError(f"an engine runs on the CPU in float32 and {problem} ({error})") from error
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise PrepareError(
                f"an engine runs on the CPU in float32 and {problem}; asked for {probe.dtype} on {probe.device}"
            )
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Return an engine of its own precision and modules; planes and the cache are shared."""
        state: EngineState = self.__dict__["_bitswitch"]
        # Without a precision until it has been traced, so that no weight of one becomes a constant of the graph.
        active = Active()
        memo[id(self._active)] = active
        memo.update({id(weight): weight for weight in self._weights.values()})
        network = copy.deepcopy(self.network, memo)
        shared = (self._weights, self._reader, self.cache)
        return Engine(network, replace(state), *shared, fuse=self._fuse, active=active, lock=self._lock)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise PrepareError(
            "an engine cannot be pickled: its weights are mapped from files; save the model that it was deployed from "
            "with bitswitch.save and deploy the folder where it is needed"
        )


def _is_traced(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether this thread records operations of PyTorch, or computes with tensors without values.

    `torch.compiler.is_compiling` does not say so: it is true in all threads while one of them compiles.
    """
    if any(type(value) is FakeTensor for value in (*args, *kwargs.values())):
        return True
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return True
    if torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PreDispatch):
        return True
    # Not every mode is one of these: there are some that count or print operations.
    return torch._C._len_torch_dispatch_stack() > 0 and (
        torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or type(torch.empty(0, device="cpu")) is not Tensor
    )


@torch.compiler.disable
def _run_uncompiled(engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an engine inside a network that torch.compile compiles: its kernels are compiled already."""
    return engine.forward(*args, **kwargs)
