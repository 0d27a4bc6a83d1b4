"""Run one engine from many threads while another thread changes its precision, and check every output.

    python benchmarks/threads.py [--networks linear conv] [--seconds 60] [--threads 8] [--json FILE]

Each of 8 threads calls the engine again and again, on inputs of several batch sizes, at the live precision or, every
third time, at one of its own; a ninth thread switches between all widths and two mixed maps, as quickly as it can. An
output that is not bit for bit that of one precision (of the one that was asked for, if one was) counts as wrong. The
cache holds half of what all precisions together would keep, so what is derived from the planes is dropped and made
again all the time. Resident memory is sampled after a warm-up of a fifth of the time: the median of the last quarter
of the samples over that of the first tells whether something leaks. Ends with exit code 1 if an output was wrong, or
memory grew by more than one per cent.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import bitswitch as bs
from bitswitch.bench import add_options, machine, write_json
from bitswitch.bench.memory import resident_bytes
from bitswitch.models import build_model
from bitswitch.precision import Precision
from bitswitch.runtime import Engine

BITS = (8, 6, 4, 2)
BATCHES = (1, 2, 5, 8)
WARM_UP = 0.2
ALLOWED_GROWTH = 0.01


@dataclass
class Result:
    """What happened.

    Attributes:
        network: name.
        seconds: how long it ran.
        calls: outputs that were checked.
        wrong: those that were not of one precision.
        switches: by the ninth thread.
        seen: outputs at the live precision, by that precision.
        errors: what threads raised.
        resident: samples after the warm-up, bytes.
    """

    network: str
    seconds: float
    calls: int = 0
    wrong: int = 0
    switches: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    @property
    def growth(self) -> float | None:
        """Resident memory of the last quarter over that of the first, less 1."""
        quarter = len(self.resident) // 4
        if not quarter:
            return None
        return statistics.median(self.resident[-quarter:]) / statistics.median(self.resident[:quarter]) - 1

    @property
    def passed(self) -> bool:
        """Whether all outputs were right and memory did not grow."""
        return not self.wrong and not self.errors and (self.growth is None or self.growth <= ALLOWED_GROWTH)

    def to_json(self) -> dict[str, Any]:
        """Return everything."""
        return {**vars(self), "seen": dict(self.seen), "growth": self.growth, "passed": self.passed}


class Linears(nn.Sequential):
    """Linear layers whose rows do not fill whole words."""

    def __init__(self) -> None:
        sizes = (200, 520, 260, 130, 10)
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
        super().__init__(*layers)


def subject(name: str) -> tuple[Engine, list[Tensor]]:
    """Return an engine, all of whose layers are integers, and inputs of several batch sizes."""
    torch.manual_seed(0)
    shape = (200,) if name == "linear" else (3, 32, 32)
    network = Linears() if name == "linear" else build_model("resnet20-cifar")
    images = torch.randn(32, *shape)
    with torch.no_grad():
        # Statistics of BatchNorm that fit.
        network(images)
    model = bs.prepare(network.eval(), BITS, example_inputs=images, first_last=8)
    bs.calibrate(model, [images])
    return bs.deploy(model), [torch.randn(batch, *shape) for batch in BATCHES]


def precisions(engine: Engine) -> list[Precision]:
    """Return every width, and two mixed maps."""
    layers = [name for name, widths in bs.summary(engine).table.available.items() if len(widths) > 1]
    maps = [{name: BITS[(index + shift) % len(BITS)] for index, name in enumerate(layers)} for shift in (0, 2)]
    return [Precision.of(bits) for bits in BITS] + [Precision.of(widths) for widths in maps]


class Trial:
    """One engine, its right outputs, and the threads that use it.

    Args:
        name: of the network.
        seconds: how long to run.
        threads: how many call the engine.
    """

    def __init__(self, name: str, seconds: float, threads: int) -> None:
        self.engine, self.inputs = subject(name)
        self.choices = precisions(self.engine)
        self.right = [[self.engine(x, precision=p) for p in self.choices] for x in self.inputs]
        self.engine.cache.limit = self.engine.cache.num_bytes // 2
        self.result = Result(name, seconds)
        self.threads = threads
        self.stop = threading.Event()
        self.lock = threading.Lock()

    def run(self) -> Result:
        """Run all threads for the time given and return what happened."""
        workers = [self._started(lambda seed=seed: self._infer(random.Random(seed))) for seed in range(self.threads)]
        workers.append(self._started(lambda: self._switch(random.Random(-1))))
        begin, step = time.monotonic(), self.result.seconds / 60
        while (passed := time.monotonic() - begin) < self.result.seconds and not self.stop.is_set():
            time.sleep(step)
            resident = resident_bytes()
            if resident is not None and passed > WARM_UP * self.result.seconds:
                self.result.resident.append(resident)
        self.stop.set()
        for worker in workers:
            worker.join()
        return self.result

    def _started(self, work: Callable[[], None]) -> threading.Thread:
        def body() -> None:
            try:
                work()
            except BaseException as error:
                self.result.errors.append(f"{type(error).__name__}: {error}")
                self.stop.set()

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def _infer(self, chance: random.Random) -> None:
        calls, wrong, seen = 0, 0, Counter[str]()
        while not self.stop.is_set():
            index, choice = chance.randrange(len(self.inputs)), chance.randrange(len(self.choices))
            calls += 1
            if calls % 3 == 0:
                output = self.engine(self.inputs[index], precision=self.choices[choice])
                wrong += not torch.equal(output, self.right[index][choice])
                continue
            output = self.engine(self.inputs[index])
            found = next(
                (p for p, y in zip(self.choices, self.right[index], strict=True) if torch.equal(output, y)), None
            )
            wrong += found is None
            seen[_short(found)] += 1
        with self.lock:
            self.result.calls += calls
            self.result.wrong += wrong
            self.result.seen += seen

    def _switch(self, chance: random.Random) -> None:
        while not self.stop.is_set():
            bs.switch(self.engine, chance.choice(self.choices))
            self.result.switches += 1
            time.sleep(chance.random() * 0.002)


def _short(precision: Precision | None) -> str:
    if precision is None:
        return "none"
    return "mixed" if precision.layers else f"{precision.default} bits"


def show(result: Result) -> None:
    """Print what happened."""
    print(f"\n{result.network}: {result.seconds:g} s, {result.calls} calls, {result.switches} switches")
    print(f"  wrong outputs: {result.wrong}; live precision: " + ", ".join(f"{k} {n}" for k, n in result.seen.items()))
    if result.growth is not None:
        low, high = min(result.resident) / 2**20, max(result.resident) / 2**20
        print(f"  resident memory {low:.1f} … {high:.1f} MiB after the warm-up, growth {100 * result.growth:+.2f} %")
    for error in result.errors[:5]:
        print(f"  {error}")
    print("  passed" if result.passed else "  FAILED")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials; 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=("linear", "conv"), choices=("linear", "conv"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of each network")
    parser.add_argument("--threads", type=int, default=8)
    add_options(parser, repeat=None)
    options = parser.parse_args(arguments)
    here = machine(bandwidth=False)
    print(here)
    results = [Trial(name, options.seconds, options.threads).run() for name in options.networks]
    for result in results:
        show(result)
    if options.json is not None:
        write_json(options.json, here, {"threads": [result.to_json() for result in results]})
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
