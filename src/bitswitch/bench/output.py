"""Options and output that the benchmarks share."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitswitch.bench.machine import Machine


def add_options(parser: argparse.ArgumentParser, *, repeat: int | None = 15) -> None:
    """Add what every benchmark understands: --repeat, --json FILE.

    Args:
        parser: of the benchmark.
        repeat: default number of rounds; None if there are none.
    """
    if repeat is not None:
        about = f"rounds, each calls everything (default {repeat})"
        parser.add_argument("--repeat", type=int, default=repeat, help=about)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")


def write_json(path: Path, machine: Machine, results: Mapping[str, Any]) -> None:
    """Write figures with what they were measured on.

    Args:
        path: file to write; folders above it are made.
        machine: becomes the field "machine".
        results: the other fields: anything that JSON knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"machine": machine.to_json(), **results}, indent=2, ensure_ascii=False)
    path.write_text(content + "\n", encoding="utf-8")
