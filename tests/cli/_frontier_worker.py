"""Runs `bitswitch frontier` in children that are killed at given moments, until one of them finishes.

A moment is a number of measurements: the child sends itself SIGKILL right after it has done that many, before they are
written. Children are forked, so that PyTorch is imported once.

Arguments: a file that gets a line for each measurement, the moments divided by commas, then the words of the command.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import torch

import bitswitch.training
from bitswitch.cli import main


def run(log: str, moment: int, words: Sequence[str]) -> None:
    evaluate = bitswitch.training.evaluate
    count = 0

    def watched(model: Any, images: Any, precisions: Any, metric: Any) -> Any:
        nonlocal count
        found = evaluate(model, images, precisions, metric)
        with open(log, "a", encoding="utf-8") as file:
            file.writelines(f"{images.num_samples} {precision}\n" for precision in precisions)
        count += len(precisions)
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    bitswitch.training.evaluate = watched
    os._exit(main(words))


torch.set_num_threads(1)
for text in [*filter(None, sys.argv[2].split(",")), "0"]:
    child = os.fork()
    if child == 0:
        run(sys.argv[1], int(text), sys.argv[3:])
    status = os.waitpid(child, 0)[1]
    if status != (signal.SIGKILL if text != "0" else 0):
        sys.exit(f"moment {text}: the child ended with {status}")
