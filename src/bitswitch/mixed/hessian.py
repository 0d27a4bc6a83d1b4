"""Traces of the Hessian or Gauss–Newton matrix over the weights of every layer, all layers at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from bitswitch._calibrate import check_batches
from bitswitch._plan import weighted_nodes
from bitswitch.errors import ArgumentError, ConfigError
from bitswitch.layers.adapters import adapt
from bitswitch.layers.base import float_forward, iter_layers
from bitswitch.layers.modes import in_mode
from bitswitch.layers.registry import has_weight
from bitswitch.layers.table import PARAMETER, ModelState, unwrap
from bitswitch.mixed._accumulate import Moments, merged, summed
from bitswitch.mixed.sensitivity import Sensitivity, Trace, fingerprint
from bitswitch.switching import at

Method = Literal["gauss-newton", "hessian"]
LossFn = Callable[[nn.Module, Any], Any]


def hessian_trace(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Iterable[Any],
    *,
    method: Method = "gauss-newton",
    relative_error: float = 0.1,
    min_probes: int = 2,
    max_probes: int = 64,
    inputs: bool = False,
    seed: int = 0,
    dim: int | None = None,
) -> Sensitivity:
    """Estimate, for every layer, the trace of the loss's curvature with respect to its weights.

    "hessian" is Hutchinson's estimator: with v of independent ±1, E[v_lᵀ(Hv)_l] = tr H_ll. One double backward a probe
    serves all layers: v_lᵀ(Hv)_l has the layer's own quadratic form and cross terms with the other layers, whose mean
    is zero.

    "gauss-newton" is the trace of the Gauss–Newton matrix of the cross-entropy, which equals the Fisher information:
    E‖∂/∂w_l Σ_i s_i·ℓ(z_i, y_i)‖²/N with classes y_i drawn from the network's own softmax and signs s_i = ±1. It needs
    one ordinary backward a probe, has no cross terms between layers, and cannot be negative; it leaves out the part of
    the Hessian that is due to the network's own curvature, which vanishes where every loss is at its minimum.

    Every batch gets probes of its own; probes are added, a pass over the data at a time, until the standard error of
    every layer's trace is small enough. The standard errors are those of the estimate for these data: they say nothing
    about other data. The network runs in evaluation mode, so BatchNorm uses its running statistics.

    Args:
        model: a float model, or a prepared one that is trainable, which then runs in full precision
            with the BatchNorms of its highest width. Not changed.
        loss_fn: (model, batch) → mean loss over the batch, or (loss, logits); the latter for "gauss-newton", which
            takes the loss to be the mean cross-entropy of the logits over all positions. Positions that the loss
            ignores count too: return logits without them, of shape (positions, C), if they should not.
        batches: what `loss_fn` takes, for example 1000 training images; read once a probe. Small
            batches give more independent probes for the same work: 32 is a good size. Several processes of a
            group bring batches of their own each.
        method: which matrix. The default orders layers alike from run to run at a fraction of the cost of the other.
        relative_error: stop when every layer's standard error is below this share of its trace.
        min_probes: probes of each batch before that is looked at; at least 2, or there is no standard error.
        max_probes: stop here in any case.
        inputs: also estimate the trace with respect to each layer's input, per example.
        seed: of the probes.
        dim: the dimension of the classes in the logits, for "gauss-newton": -1 for tokens (N, T, C), 1 for images of
            logits (N, C, H, W). Only logits (N, C) need none.

    Raises:
        ConfigError: an argument is out of range, there are no batches, a layer holds stored integers, no layer takes
            part in the loss, an estimate is NaN, or "gauss-newton" gets logits of more than two dimensions without
            `dim`.
        ArgumentError: the loss is no scalar tensor, "gauss-newton" gets no logits, or `batches` is a tensor or a
            mapping.
    """
    _check(method, relative_error, min_probes, max_probes, dim)
    check_batches(batches)
    network, owned = _float_network(model)
    kept = batches if iter(batches) is not batches else list(batches)
    moments: list[Moments] = []
    with ExitStack() as stack:
        if "_bitswitch" in network.__dict__:
            # Of the BatchNorms that a prepared model has, those of the highest width are the nearest to the float ones.
            stack.enter_context(at(network, network.__dict__["_bitswitch"].bits[0]))
        stack.enter_context(_differentiable(network, [p for group in owned.values() for p in group]))
        recorder = stack.enter_context(_recorded_inputs(network, owned if inputs else {}))
        probe = _Probe(network, loss_fn, owned, recorder, _generator(network, seed), method, dim)
        num_probes, found = 0, None
        while found is None or (num_probes < max_probes and found.largest_relative_error() > relative_error):
            _one_pass(probe, kept, moments)
            num_probes += 1
            found = merged(moments) if num_probes >= min_probes else None
    names = list(owned)
    sizes = [sum(p.numel() for p in owned[name]) for name in names]
    traces = [Trace(v, e, s) for v, e, s in zip(found.values, found.errors, sizes, strict=False)]
    bad = next((n for n, t in zip(names, traces, strict=True) if t.value != t.value), None)
    if bad is not None:
        raise ConfigError(f"the trace estimate of layer {bad!r} is NaN")
    input_sizes = recorder.sizes()
    of_inputs = zip(recorder.names, found.values[len(names) :], found.errors[len(names) :], strict=True)
    return Sensitivity(
        dict(zip(names, traces, strict=True)),
        method,
        num_probes,
        found.num_examples,
        fingerprint(model),
        {n: Trace(value, error, input_sizes[n]) for n, value, error in of_inputs if n in input_sizes},
    )


def _check(method: str, relative_error: float, min_probes: int, max_probes: int, dim: object) -> None:
    if method not in ("gauss-newton", "hessian"):
        raise ConfigError(f"method must be 'gauss-newton' or 'hessian'; got {method!r}")
    if not relative_error > 0:
        raise ConfigError(f"relative_error must be positive; got {relative_error!r}")
    if not 2 <= min_probes <= max_probes:
        raise ConfigError(f"2 ≤ min_probes ≤ max_probes is needed; got {min_probes} and {max_probes}")
    if dim is not None and type(dim) is not int:
        raise ConfigError(f"dim must be an integer or None; got {dim!r}")


def _float_network(model: nn.Module) -> tuple[nn.Module, dict[str, list[nn.Parameter]]]:
    """Return a network to differentiate and the weights of its layers, each under the first layer that has it."""
    network = unwrap(model)
    frozen = next((name for name, layer in iter_layers(network) if layer.is_frozen), None)
    if frozen is not None:
        raise ConfigError(f"layer {frozen!r} holds stored integers; give the float model, or bitswitch.unfreeze(model)")
    state = network.__dict__.get("_bitswitch")
    if isinstance(state, ModelState):
        names = [e.name for e in state.table.values() if e.status != "per-width" and e.kind != PARAMETER]
    else:
        network = copy.deepcopy(network)
        adapt(network)
        names = [name for name, module in weighted_nodes(network) if has_weight(module)]
    owned: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for name in names:
        module = network.get_submodule(name)
        # A recurrent layer has several matrices.
        weights = [p for key, p in module.named_parameters(recurse=False) if "weight" in key and id(p) not in seen]
        seen.update(map(id, weights))
        if weights:
            owned[name] = weights
    if not owned:
        raise ConfigError("the model has no layers with weights")
    return network, owned


@contextmanager
def _differentiable(network: nn.Module, weights: list[nn.Parameter]) -> Iterator[None]:
    """Run in evaluation mode and full precision, on kernels that can be differentiated twice."""
    before = [(weight, weight.requires_grad) for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        # Neither fused attention nor oneDNN's recurrent layers have a second derivative.
        with (
            in_mode(network, training=False),
            float_forward(network),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            if any(isinstance(module, nn.RNNBase) for module in network.modules()):
                with _without_onednn(), torch.backends.cudnn.flags(enabled=False):
                    yield
            else:
                yield
    finally:
        for weight, required in before:
            weight.requires_grad_(required)


@contextmanager
def _without_onednn() -> Iterator[None]:
    # torch.backends.mkldnn.flags also sets TF32 for Intel's GPUs, which warns where there are none.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@dataclass
class _Recorder:
    """The inputs that layers were given in the last forward pass, and how many elements in all passes, by layer.

    A layer need not run on every batch, as an expert of a mixture.
    """

    names: Sequence[str]
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)
    examples: int = 0

    def count(self, num_examples: int) -> None:
        """Take in what the last forward pass has shown."""
        self.examples += num_examples
        for name, inputs in self.seen.items():
            self.elements[name] = self.elements.get(name, 0) + sum(x.numel() for x in inputs)

    def sizes(self) -> dict[str, int]:
        """Return the number of input elements of an example, of the layers that ran in any process."""
        counts = torch.tensor([self.examples, *(self.elements.get(name, 0) for name in self.names)])
        examples, *elements = summed(counts).tolist()
        return {n: max(1, round(count / examples)) for n, count in zip(self.names, elements, strict=True) if count}


@contextmanager
def _recorded_inputs(network: nn.Module, names: Mapping[str, Any]) -> Iterator[_Recorder]:
    recorder = _Recorder(list(names))
    handles = []
    for name in names:

        def hook(_module: nn.Module, args: Any, kwargs: Any, name: str = name) -> Any:
            leaves, spec = pytree.tree_flatten((args, kwargs))
            index = next((i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)), None)
            if index is None or not leaves[index].is_floating_point():
                return None
            given = leaves[index]
            # A tensor of this layer's own: what else reads the input, such as a shortcut, is not part of its trace.
            leaves[index] = given.view_as(given) if given.requires_grad else given.detach().requires_grad_()
            recorder.seen.setdefault(name, []).append(leaves[index])
            return pytree.tree_unflatten(leaves, spec)

        handles.append(network.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


def _generator(network: nn.Module, seed: int) -> torch.Generator:
    """Return a generator of this process's own, on the network's device."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    device = next(network.parameters()).device
    return torch.Generator(device).manual_seed(seed * 1_000_003 + rank)


def _one_pass(probe: _Probe, batches: Iterable[Any], moments: list[Moments]) -> None:
    """Give every batch one more probe."""
    count = 0
    for index, batch in enumerate(batches):
        values, num_examples = probe(batch)
        if index == len(moments):
            moments.append(Moments(num_examples, values.numel()))
        moments[index].add(values)
        count += 1
    if count == 0 or count != len(moments):
        raise ConfigError("there are no batches" if count == 0 else "the batches must be the same ones in every pass")


@dataclass
class _Probe:
    """One random probe of all layers on one batch."""

    network: nn.Module
    loss_fn: LossFn
    owned: Mapping[str, list[nn.Parameter]]
    recorder: _Recorder
    generator: torch.Generator
    method: str
    dim: int | None

    def __call__(self, batch: Any) -> tuple[Tensor, int]:
        """Return an unbiased estimate of every trace, float64 on the CPU, and the number of examples."""
        self.recorder.seen.clear()
        output = self.loss_fn(self.network, batch)
        loss, logits = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ArgumentError("loss_fn must return a scalar tensor, or (scalar tensor, logits tensor)")
        targets = [*self.owned.values(), *(self.recorder.seen.get(name, []) for name in self.recorder.names)]
        flat = [tensor for group in targets for tensor in group]
        num_examples = _num_examples(batch, logits)
        self.recorder.count(num_examples)
        products = self._gauss_newton(logits, flat) if self.method == "gauss-newton" else self._hessian(loss, flat)
        sums = torch.stack(products)
        owner = torch.tensor([i for i, group in enumerate(targets) for _ in group], device=sums.device)
        return torch.zeros(len(targets), dtype=sums.dtype, device=sums.device).index_add(
            0, owner, sums
        ).cpu(), num_examples

    def _hessian(self, loss: Tensor, flat: list[Tensor]) -> list[Tensor]:
        """Return vᵀHv restricted to every tensor."""
        grads = torch.autograd.grad(loss, flat, create_graph=True, allow_unused=True)
        if all(g is None for g in grads):
            raise ConfigError("the loss does not depend on any layer's weights")
        probes = [self._signs(tensor.shape, tensor) for tensor in flat]
        used = [i for i, g in enumerate(grads) if g is not None and g.requires_grad]
        curved: list[Tensor | None] = [None] * len(flat)
        if used:
            wanted = [grads[i] for i in used]
            found = torch.autograd.grad(wanted, flat, [probes[i] for i in used], allow_unused=True)
            curved = list(found)
        zero = loss.new_zeros((), dtype=torch.float64)
        pairs = zip(probes, curved, strict=True)
        return [zero if h is None else (v * h).sum(dtype=torch.float64).detach() for v, h in pairs]

    def _gauss_newton(self, logits: Tensor | None, flat: list[Tensor]) -> list[Tensor]:
        """Return the squared gradient norm of every tensor for drawn classes and signs."""
        if not isinstance(logits, Tensor) or logits.dim() < 2:
            raise ArgumentError(
                "method='gauss-newton' needs a loss_fn that returns (loss, logits) with logits (N, C), (N, T, C) or "
                "(N, C, …)"
            )
        rows = logits.float().movedim(_class_dim(logits.shape, self.dim), -1).flatten(0, -2)
        classes = torch.multinomial(rows.detach().softmax(1), 1, generator=self.generator)
        losses = -rows.log_softmax(1).gather(1, classes).squeeze(1)
        signs = self._signs(losses.shape, losses)
        grads = torch.autograd.grad((signs * losses).sum() / len(rows) ** 0.5, flat, allow_unused=True)
        if all(g is None for g in grads):
            raise ConfigError("the logits do not depend on any layer's weights")
        zero = losses.new_zeros((), dtype=torch.float64)
        return [zero if g is None else g.square().sum(dtype=torch.float64) for g in grads]

    def _signs(self, shape: torch.Size, like: Tensor) -> Tensor:
        drawn = torch.randint(0, 2, shape, generator=self.generator, device=like.device, dtype=torch.int8)
        return drawn.to(like.dtype).mul_(2).sub_(1)


def _class_dim(shape: torch.Size, dim: int | None) -> int:
    """Return the dimension of the classes in logits of a shape of two or more dimensions.

    Raises:
        ConfigError: it must be given and is not, or is none that classes can have.
    """
    if dim is None:
        # A wrong guess would give traces that look like any others: language models have the classes last, networks
        # for segmentation second.
        if len(shape) > 2:
            raise ConfigError(
                f"the logits have the shape {tuple(shape)}; say which dimension holds the classes: dim=-1 for "
                "(N, T, C), dim=1 for (N, C, H, W)"
            )
        return 1
    if not -len(shape) < dim < len(shape) or dim == 0:
        raise ConfigError(
            f"dim={dim} cannot hold the classes of logits of the shape {tuple(shape)}, whose dimension 0 is that of "
            "the examples"
        )
    return dim


def _num_examples(batch: Any, logits: Tensor | None) -> int:
    """Return how many examples a batch has: the first dimension of its logits or of its first tensor."""
    if logits is not None and logits.dim():
        return len(logits)
    first = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()), None)
    return 1 if first is None else len(first)
