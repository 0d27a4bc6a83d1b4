"""Run whole networks with integer codes between their layers."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bitswitch import kernels
from bitswitch.runtime.cache import DerivedCache
from bitswitch.runtime.configuration import Configuration
from bitswitch.runtime.graph import parts
from bitswitch.runtime.graph.arena import Arenas
from bitswitch.runtime.graph.compile import compile_plan
from bitswitch.runtime.graph.describe import describe_plan, headline
from bitswitch.runtime.graph.geometry import ConvGeometry, LinearGeometry, ShapeError
from bitswitch.runtime.graph.nodes import ConvNode, FloatConvNode, LinearNode
from bitswitch.runtime.graph.operands import Binder, Bound
from bitswitch.runtime.graph.plan import Plan, make_plan
from bitswitch.runtime.graph.program import Program
from bitswitch.runtime.graph.reference import Watch, execute_reference
from bitswitch.runtime.graph.shapes import Fit, fit_plan
from bitswitch.runtime.graph.trace import trace_network
from bitswitch.runtime.stored import StoredWeight

# Shapes of inputs for which plans are kept.
_MOST_SHAPES = 8
# Reasons for running module by module that are remembered.
_MOST_REASONS = 8


class Fitted:
    """A plan for inputs of given shapes, and its program at each precision; or why and where it does not fit."""

    def __init__(self, fit: Fit | None, reason: str = "", misfit: str | None = None) -> None:
        self.fit, self.reason, self.misfit = fit, reason, misfit
        self.programs: WeakKeyDictionary[Bound, Program] = WeakKeyDictionary()


class GraphExecutor:
    """Runs an engine's network as a graph, for any precision and shape of inputs; threads may do so at the same time.

    Calls that the graph cannot run, because of shapes or arguments, run module by module; `describe` tells of them.

    Args:
        network: a prepared and calibrated network. Of its layers the scales and shapes are read; what the plan leaves
            to PyTorch is run from it.
        weights: stored weights by layer.
        cache: of what is derived from the weights; buffers that wait for the next run may take as much as it may.

    Raises:
        UntraceableError: the network cannot be turned into a graph.
    """

    def __init__(self, network: nn.Module, weights: Mapping[str, StoredWeight], cache: DerivedCache) -> None:
        self.network = network
        self._graph = trace_network(network)
        self.plan = make_plan(self._graph, network)
        self._signature = inspect.signature(network.forward)
        self._by_position = self._are_first([name for name, _ in self.plan.arguments])
        called = [str(node.target) for node in self._graph.nodes if node.op == "call_module"]
        self._binder = Binder(network, called, weights, with_kernels=kernels.native is not None)
        self.geometries: dict[str, ConvGeometry | LinearGeometry] = {}
        for node in self.plan.nodes:
            if isinstance(node, (ConvNode, LinearNode, FloatConvNode)):
                layer: Any = network.get_submodule(node.layer)
                is_conv = isinstance(layer, nn.Conv2d)
                self.geometries[node.layer] = ConvGeometry.of(layer) if is_conv else LinearGeometry.of(layer)
        self.arenas = Arenas(lambda: cache.limit)
        self._lock = threading.Lock()
        self._fitted: OrderedDict[Any, Fitted] = OrderedDict()
        self._reasons: dict[str, int] = {}

    def _are_first(self, names: list[str]) -> bool:
        """Whether parameters are the first ones of the network, in their order, and take arguments by position."""
        parameters = list(self._signature.parameters.values())[: len(names)]
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [p.name for p in parameters] == names and all(p.kind in positional for p in parameters)

    def bind(self, widths: Mapping[str, int], norm_keys: Mapping[str, str]) -> Bound:
        """Return the operands of one precision; see `bitswitch.runtime.configuration.Executor`."""
        return self._binder.bind(self.plan, widths, norm_keys)

    def run(self, configuration: Configuration, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the network once."""
        try:
            inputs, restore = self._inputs(args, kwargs)
            fit, fitted = self._fit(configuration.bound, inputs)
            result = self._run_fit(fit, fitted, configuration.bound, inputs)
        except ShapeError as error:
            result = self.network(*args, **kwargs)
            self._note(str(error))
            return result
        return result if restore is None else _cast(result, restore)

    def describe(self) -> str:
        """Return how the network is run: a line as a whole, a line for each operation, and what ran otherwise."""
        with self._lock:
            fits = [(key, fitted.fit) for key, fitted in self._fitted.items() if fitted.fit is not None]
            reasons = dict(self._reasons)
        others = {tuple(item[0] for item in key): fit.plan for key, fit in fits if fit.plan is not self.plan}
        return "\n".join([headline(self.plan, reasons), *describe_plan(self.plan, others)])

    @torch.no_grad()
    def run_bound(
        self,
        bound: Bound,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        reference: bool = False,
        watch: Watch | None = None,
    ) -> Any:
        """Run the graph at one precision.

        Args:
            bound: operands from `bind`.
            args: arguments of the network.
            kwargs: arguments of the network.
            reference: run on plain PyTorch references; the result is the same, bit for bit.
            watch: sees the codes that layers compute with; only of references.

        Returns:
            What the network returns, in new memory.

        Raises:
            ShapeError: arguments that the graph was not made for.
        """
        inputs, restore = self._inputs(args, kwargs)
        fit, fitted = self._fit(bound, inputs)
        if reference:
            result = execute_reference(fit.plan, self.geometries, bound, self.network, inputs, watch)
        else:
            result = self._run_fit(fit, fitted, bound, inputs)
        return result if restore is None else _cast(result, restore)

    def _run_fit(self, fit: Fit, fitted: Fitted, bound: Bound, inputs: Mapping[str, Tensor]) -> Any:
        if kernels.native is None:
            return execute_reference(fit.plan, self.geometries, bound, self.network, inputs)
        program = fitted.programs.get(bound)
        if program is None:
            # Two threads may both make it; either will do.
            program = fitted.programs[bound] = compile_plan(fit, self.geometries, bound, self.network)
        if fit.busy > parts.PART_BYTES and program.by_sample:
            count = len(next(iter(inputs.values())))
            part = parts.samples_of_part(count, fit.busy, torch.get_num_threads())
            if part < count:
                return self._run_parts(bound, inputs, part)
        arena = self.arenas.take(fit.size)
        result = program.run(arena, inputs)
        # Not after an exception, whose traceback has views of it.
        self.arenas.give(arena)
        return result

    def _run_parts(self, bound: Bound, inputs: Mapping[str, Tensor], samples: int) -> Any:
        """Run parts of a batch one after the other, and put their results together."""
        results: list[Any] = []
        for tensors in zip(*(tensor.split(samples) for tensor in inputs.values()), strict=True):
            part = dict(zip(inputs, tensors, strict=True))
            results.append(self._run_fit(*self._fit(bound, part), bound, part))
        return pytree.tree_map(lambda *found: torch.cat(found) if isinstance(found[0], Tensor) else found[0], *results)

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Tensor], torch.dtype | None]:
        """Return input tensors by the names of their values, in float32, and the type that results are wanted in."""
        wanted = self.plan.arguments
        if self._by_position and not kwargs and len(args) == len(wanted):
            given = dict(zip((name for name, _ in wanted), args, strict=True))
        else:
            given = self._bound_arguments(args, kwargs)
        inputs: dict[str, Tensor] = {}
        kinds: set[torch.dtype] = set()
        for argument, value in wanted:
            tensor = given.get(argument)
            if not isinstance(tensor, Tensor) or tensor.device.type != "cpu":
                raise ShapeError(f"argument {argument!r} is no tensor on the CPU")
            if tensor.is_floating_point():
                kinds.add(tensor.dtype)
                tensor = tensor.float()
            inputs[value] = tensor
        if len(kinds) > 1:
            raise ShapeError("arguments have different floating-point types")
        kind = next(iter(kinds), torch.float32)
        return inputs, None if kind is torch.float32 else kind

    def _bound_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = self._signature.bind(*args, **kwargs).arguments
        wanted = {argument for argument, _ in self.plan.arguments}
        for name, value in given.items():
            default = self._signature.parameters[name].default
            if name not in wanted and not (value is default or (type(value) is type(default) and value == default)):
                raise ShapeError(f"argument {name!r} has another value than the graph was made for")
        # Tensors may be defaults, too.
        return {name: self._signature.parameters[name].default for name in wanted} | given

    def _fit(self, bound: Bound, inputs: Mapping[str, Tensor]) -> tuple[Fit, Fitted]:
        key = tuple([(tuple(t.shape), t.dtype, t.is_contiguous()) for t in inputs.values()])
        with self._lock:
            known = self._fitted.get(key)
            if known is not None:
                self._fitted.move_to_end(key)
        if known is None:
            # Without the lock: modules that are left to PyTorch may call the engine themselves.
            made = self._make_fit(bound, inputs)
            with self._lock:
                known = self._fitted.setdefault(key, made)
                while len(self._fitted) > _MOST_SHAPES:
                    self._fitted.popitem(last=False)
        if known.fit is None:
            raise ShapeError(known.reason)
        return known.fit, known

    def _make_fit(self, bound: Bound, inputs: Mapping[str, Tensor]) -> Fitted:
        """Fit the plan to inputs; operations that do not fit are left to PyTorch."""
        plan, separate = self.plan, set[str]()
        while True:
            fitted = self._try_fit(plan, bound, inputs)
            if fitted.fit is not None or fitted.misfit is None or fitted.misfit in separate:
                return fitted
            separate.add(fitted.misfit)
            plan = make_plan(self._graph, self.network, separate)

    def _try_fit(self, plan: Plan, bound: Bound, inputs: Mapping[str, Tensor]) -> Fitted:
        try:
            return Fitted(fit_plan(plan, self.geometries, bound, self.network, inputs))
        except ShapeError as error:
            return Fitted(None, str(error), error.node)
        except Exception as error:
            # Of a module that is left to PyTorch, which may be the inputs' fault: the network itself will say.
            raise ShapeError(f"{type(error).__name__} while shapes were found out: {error}") from error

    def _note(self, reason: str) -> None:
        with self._lock:
            if reason in self._reasons or len(self._reasons) < _MOST_REASONS:
                self._reasons[reason] = self._reasons.get(reason, 0) + 1


def _cast(result: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.dtype is torch.float32 else t, result)
