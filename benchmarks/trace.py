"""Compare estimators of the layers' traces at equal cost, and all layers' traces with PyHessian's of the whole network.

    python benchmarks/trace.py runs/cifar10-resnet20-joint [--images 256] [--seconds 15] [--runs 3] [--json trace.json]

The network is the float network of a run folder (or the weights of a checkpoint folder), the images are training images
of its recipe. Every estimator gets the same processor time, and is run several times with other probes:

- hessian: Hutchinson's estimator, one double backward a probe for all layers, as `hessian_trace` does it;
- deflated: Hutch++ (Meyer et al. 2021) for each layer alone, on the layer's own block of the Hessian: no cross terms
  between layers, and the largest eigenvalues are taken out, but every product serves a single layer;
- gauss-newton: the default of `hessian_trace`; another matrix, so its traces are not those of the Hessian.

Then the time that PyHessian, if it is installed, takes for the trace of the whole network is compared with what
`hessian_trace` takes for those of all layers, in turn in one process, at equal standard errors of the total: times are
multiplied by the variance of the total over the rounds. Nothing is installed.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import f as f_distribution
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from bitswitch.bench import add_options, machine, write_json
from bitswitch.cli.tables import print_table
from bitswitch.mixed import hessian_trace
from bitswitch.recipes.trained import FirstBatches, Trained, images_of, open_images
from bitswitch.training import CrossEntropy

Batches = list[tuple[Tensor, Tensor]]
Traces = dict[str, float]
# PyHessian takes all images as one batch; small ones give `hessian_trace` more probes for the same work.
BATCH = 32


def open_network(path: Path, images: int, data_folder: str | None) -> tuple[nn.Module, Batches]:
    """Return the float network and so many training images, in batches of 32."""
    trained = Trained.open(path)
    data = images_of(trained.recipe, path, None, data_folder)
    loader = open_images(trained, data, BATCH, torch.device("cpu")).calibration(BATCH)
    batches = list(FirstBatches(loader, -(-images // BATCH)))
    network = trained.float_network().eval()
    return network, [(x.contiguous(), y) for x, y in batches]


def together(batches: Batches) -> Batches:
    """Return one batch of all images."""
    x, y = zip(*batches, strict=True)
    return [(torch.cat(x), torch.cat(y))]


def estimate(network: nn.Module, batches: Batches, method: Any, passes: int, seed: int) -> Traces:
    """Return the traces after so many passes over the images."""
    found = hessian_trace(
        network,
        CrossEntropy(),
        batches,
        method=method,
        relative_error=1e-9,
        min_probes=passes,
        max_probes=passes,
        seed=seed,
    )
    return dict(found)


def deflated(network: nn.Module, batches: Batches, products: int, seed: int) -> Traces:
    """Return Hutch++'s estimates for each layer's own block, from so many products with it."""
    ((inputs, targets),) = together(batches)
    modules = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    weights = [module.weight for module in modules.values()]
    generator = torch.Generator().manual_seed(seed)
    loss = F.cross_entropy(network(inputs), targets)
    grads = torch.autograd.grad(loss, weights, create_graph=True)
    found = {}
    for name, weight, grad in zip(modules, weights, grads, strict=True):

        def product(v: Tensor, weight: Tensor = weight, grad: Tensor = grad) -> Tensor:
            """Return H v for the columns of v."""
            columns = [
                torch.autograd.grad(grad, weight, column.view_as(weight), retain_graph=True)[0].flatten()
                for column in v.T.contiguous()
            ]
            return torch.stack(columns, dim=1)

        found[name] = hutch_plus_plus(product, weight.numel(), products, generator)
    return found


def hutch_plus_plus(product: Callable[[Tensor], Tensor], size: int, products: int, generator: torch.Generator) -> float:
    """Return tr QᵀHQ + the mean of gᵀ(I − QQᵀ)H(I − QQᵀ)g, with Q a basis of H S and random signs S and g."""
    count = max(1, products // 3)

    def signs() -> Tensor:
        return torch.randint(0, 2, (size, count), generator=generator).float() * 2 - 1

    basis = torch.linalg.qr(product(signs())).Q
    rest = signs()
    rest = rest - basis @ (basis.T @ rest)
    return float((basis * product(basis)).sum() + (rest * product(rest)).sum() / count)


def seconds_of(function: Callable[[int, int], object], *arguments: int) -> float:
    """Return the processor time of a call, which other programs on the machine do not change much."""
    begin = time.process_time()
    function(*arguments)
    return time.process_time() - begin


def estimators(network: nn.Module, batches: Batches) -> dict[str, Callable[[int, int], Traces]]:
    """Return the estimators by name: (number of passes or products, seed) → traces."""
    whole = together(batches)
    size = sum(len(y) for _, y in batches)
    return {
        f"hessian, batch {size}": lambda count, seed: estimate(network, whole, "hessian", count, seed),
        f"hessian, batch {BATCH}": lambda count, seed: estimate(network, batches, "hessian", count, seed),
        f"deflated, batch {size}": lambda count, seed: deflated(network, batches, count, seed),
        f"gauss-newton, batch {size}": lambda count, seed: estimate(network, whole, "gauss-newton", count, seed),
        f"gauss-newton, batch {BATCH}": lambda count, seed: estimate(network, batches, "gauss-newton", count, seed),
    }


def compare(network: nn.Module, batches: Batches, seconds: float, runs: int) -> dict[str, Any]:
    """Run every estimator several times for the same processor time."""
    found = {}
    for name, function in estimators(network, batches).items():
        step = 3 if name.startswith("deflated") else 1
        least = max(2, step)
        each = seconds_of(function, least, 0) / least
        count = max(least, int(seconds / each) // step * step)
        begin = time.process_time()
        traces = [function(count, seed) for seed in range(1, runs + 1)]
        found[name] = {"count": count, "seconds": (time.process_time() - begin) / runs, **agreement(traces)}
        gc.collect()
    return found


def agreement(runs: list[Traces]) -> dict[str, Any]:
    """Return how well runs agree: relative standard errors over the runs (of all layers in root mean square, and the
    largest), and rank correlations.
    """  # noqa: D205
    values = np.array([list(run.values()) for run in runs])
    errors = values.std(axis=0, ddof=1) / np.abs(values.mean(axis=0))
    pairs = itertools.combinations(values, 2)
    return {
        "rho": statistics.mean(float(spearmanr(a, b).statistic) for a, b in pairs),  # pyright: ignore
        "typical_error": float(np.sqrt(np.mean(errors**2))),
        "largest_error": float(errors.max()),
        "traces": {name: float(value) for name, value in zip(runs[0], values.mean(axis=0), strict=True)},
    }


def against_pyhessian(network: nn.Module, batches: Batches, rounds: int) -> dict[str, Any] | None:
    """Take turns with PyHessian; return time and variance of the whole network's trace, or None if it is not there."""
    if importlib.util.find_spec("pyhessian") is None:
        return None
    from pyhessian import hessian  # pyright: ignore[reportMissingImports]

    ((inputs, targets),) = together(batches)
    with warnings.catch_warnings():
        # About reference cycles: the gradients' graph is kept on purpose.
        warnings.simplefilter("ignore")
        other = hessian(network, F.cross_entropy, data=(inputs, targets), cuda=False)

    def own(method: Literal["hessian", "gauss-newton"], seed: int) -> list[float]:
        # A batch a call gives a variance for each, and so a better one for their mean.
        return [sum(estimate(network, [batch], method, 2, seed + i).values()) for i, batch in enumerate(batches)]

    turns: Mapping[str, Callable[[int], list[float]]] = {
        "PyHessian": lambda seed: other.trace(maxIter=2, tol=0),
        "hessian": lambda seed: own("hessian", seed),
        "gauss-newton": lambda seed: own("gauss-newton", seed),
    }
    torch.manual_seed(0)
    times: dict[str, list[float]] = {name: [] for name in turns}
    values: dict[str, list[list[float]]] = {name: [] for name in turns}
    for turn in range(rounds + 1):
        for name, function in turns.items():
            begin = time.perf_counter()
            found = function(turn * len(batches))
            # The first round warms up.
            if turn:
                times[name].append(time.perf_counter() - begin)
                values[name].append(found)
    return {name: _worth(times[name], np.array(values[name]), pooled=name == "PyHessian") for name in turns}


def _worth(times: list[float], values: np.ndarray, pooled: bool) -> dict[str, float]:
    """Return what a round takes and how much its mean varies.

    Args:
        times: of the rounds.
        values: (rounds, values of a round).
        pooled: whether all values estimate the same, or those of a column only.
    """
    rounds, columns = values.shape
    each = values.var(ddof=1) if pooled else values.var(axis=0, ddof=1).mean()
    seconds, variance = statistics.median(times), float(each) / columns
    return {
        "seconds": seconds,
        "total": float(values.mean()),
        "standard_error": variance**0.5,
        # Seconds until the standard error is 1: the variance falls with the time.
        "work": seconds * variance,
        "degrees_of_freedom": rounds * columns - (1 if pooled else columns),
    }


def print_estimators(found: Mapping[str, Mapping[str, Any]]) -> None:
    rows = [
        (
            name,
            str(row["count"]),
            f"{row['seconds']:.1f}",
            f"{row['rho']:.3f}",
            f"{row['typical_error']:.2f}",
            f"{row['largest_error']:.2f}",
        )
        for name, row in found.items()
    ]
    header = ("estimator", "probes", "processor s", "ρ between runs", "typical error", "largest error")
    print_table(header, rows)
    print("probes: of each batch; for deflated, products with each layer's block. errors: relative standard errors")


def print_pyhessian(found: Mapping[str, Mapping[str, float]] | None) -> None:
    if found is None:
        print("PyHessian is not installed: no comparison with it")
        return
    base = found["PyHessian"]
    rows = []
    for name, row in found.items():
        ratio = base["work"] / row["work"]
        # The ratio of two variances has an F distribution.
        low, high = (
            ratio / float(f_distribution.ppf(q, base["degrees_of_freedom"], row["degrees_of_freedom"]))
            for q in (0.975, 0.025)
        )
        interval = "" if name == "PyHessian" else f"{low:.1f} … {high:.1f}"
        cells = (f"{row['seconds']:.2f}", f"{row['total']:.0f}", f"{row['standard_error']:.1f}", f"{ratio:.1f}")
        rows.append((name, *cells, interval))
    print_table(("whole network", "s a round", "trace", "standard error", "times as fast", "95 % interval"), rows)


def main(arguments: Iterable[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder or a checkpoint folder")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=15.0, help="processor time of each estimator; 0 skips them")
    parser.add_argument("--runs", type=int, default=3, help="of each estimator, with other probes")
    parser.add_argument("--data-folder", help="where the images are, if not where the recipe says")
    add_options(parser, repeat=8)
    options = parser.parse_args(None if arguments is None else list(arguments))
    network, batches = open_network(options.run, options.images, options.data_folder)
    here = machine()
    print(here)
    print(f"{options.run}, {sum(len(y) for _, y in batches):,} training images")
    results: dict[str, Any] = {}
    if options.seconds > 0:
        results["estimators"] = compare(network, batches, options.seconds, options.runs)
        print_estimators(results["estimators"])
    results["pyhessian"] = against_pyhessian(network, batches, options.repeat)
    print_pyhessian(results["pyhessian"])
    if options.json is not None:
        write_json(options.json, here, results)


if __name__ == "__main__":
    main()
