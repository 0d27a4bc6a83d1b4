"""Runs a tiny job in children that are killed at given moments, until one of them finishes.

A moment is a number of file operations (files opened or renamed in the run folder): the child sends itself SIGKILL
right before it. Children are forked, so that PyTorch is imported once.

Arguments: the run folder, then the moments. Prints the number of file operations of the last child.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from bitswitch.recipes import Recipe
from bitswitch.recipes.convert import from_json
from bitswitch.recipes.job import run_recipe
from bitswitch.training.run import read_json


def main() -> None:
    recipe = from_json(Recipe, read_json(Path(sys.argv[1])))
    folder = sys.argv[2]
    torch.set_num_threads(1)
    for moment in [*map(int, sys.argv[3:]), None]:
        child = os.fork()
        if child == 0:
            run(recipe, folder, moment)
        status = os.waitpid(child, 0)[1]
        expected = 0 if moment is None else signal.SIGKILL
        if status != expected:
            sys.exit(f"moment {moment}: the child ended with {status}")


def run(recipe: Recipe, folder: str, moment: int | None) -> None:
    count = 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in ("open", "os.rename") and str(arguments[0]).startswith(folder):
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    run_recipe(recipe, folder)
    print(count, flush=True)
    os._exit(0)


main()
