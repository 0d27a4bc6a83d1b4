"""Memory that an engine takes, measured in a fresh process for each width.

`python -m bitswitch.bench.memory` is that process; it reads its task from standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bitswitch.bench.subject import Subject, without_memory
from bitswitch.errors import ConfigError
from bitswitch.models import Architecture


@dataclass(frozen=True)
class Memory:
    """Bytes of resident memory that a process has more than after its imports.

    Attributes:
        opened: once the engine is there.
        running: once it has answered.
    """

    opened: int
    running: int

    def to_json(self) -> dict[str, int]:
        """Return the fields."""
        return asdict(self)


def resident_bytes(*, anonymous: bool = False) -> int | None:
    """Return the resident memory of this process; None where /proc does not tell.

    Args:
        anonymous: without what is mapped from files, which processes share and the system can drop.
    """
    try:
        text = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return None
    field = "RssAnon:" if anonymous else "VmRSS:"
    found = [line.split()[1] for line in text.splitlines() if line.startswith(field)]
    return int(found[0]) * 1024 if found else None


def measure_memory(subject: Subject, bits: int) -> Memory | None:
    """Open a checkpoint at a width in a new process, with as many threads as this one, and answer one input.

    Args:
        subject: what to open.
        bits: the width.

    Returns:
        None where the system does not tell.

    Raises:
        ConfigError: the process failed; the message is its last line.
    """
    if resident_bytes() is None:
        return None
    task = {
        "name": subject.name,
        "folder": str(subject.folder.absolute()),
        "architecture": subject.architecture.to_json(),
        "bits": bits,
        "input_shape": subject.input_shape,
        "dynamic": subject.dynamic,
        "threads": torch.get_num_threads(),
    }
    child = subprocess.run(
        [sys.executable, "-m", "bitswitch.bench.memory"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        raise ConfigError(f"the memory of {bits} bits could not be measured: {reason}")
    return Memory(**json.loads(child.stdout))


def _child(task: dict[str, Any]) -> Memory:
    subject = Subject(
        task["name"],
        Path(task["folder"]),
        Architecture.from_json(task["architecture"]),
        (task["bits"],),
        tuple(task["input_shape"]),
        task["dynamic"],
    )
    torch.set_num_threads(task["threads"])
    x = subject.inputs(1)
    # The collection that a network comes from is imported when it is first asked for.
    without_memory(subject.architecture)
    before = resident_bytes() or 0
    engine = subject.engine()
    opened = resident_bytes() or 0
    engine(x)
    return Memory(opened - before, (resident_bytes() or 0) - before)


if __name__ == "__main__":
    print(json.dumps(_child(json.load(sys.stdin)).to_json()))
