"""Kill a run with SIGKILL at random times, ten by default, and compare what it leaves with an uninterrupted run.

    python benchmarks/resume.py [--kills 10] [--seed 0] [--folder FOLDER] [-- options of `bitswitch train`]

Both runs are real processes of the command line, with equal options and equal numbers of threads. Prints each kill, and
for every file that must not depend on interruptions whether its bytes are equal. Ends with 1 if one is not.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DEFAULT = [
    *("digits", "--model.options", "width", "16", "--start.epochs", "8", "--joint.epochs", "24"),
    *("--run.log-every", "4", "--run.checkpoint-every", "5"),
]
NAMES = ("config.json", "metrics.csv", "results.json", "report.html")


def train(folder: Path, options: list[str], seconds: float | None) -> bool:
    """Run the command until it ends, or until so many seconds after it began to work; return whether it ended."""
    command = [
        sys.executable,
        "-m",
        "bitswitch",
        "train",
        *options,
        "--runs",
        str(folder.parent),
        "--name",
        folder.name,
    ]
    log = folder.parent / f"{options[0]}-{folder.name}" / "log.txt"
    before = size(log)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Importing PyTorch takes longer than many a session: kills that fall into it would show nothing.
    while seconds is not None and size(log) == before and process.poll() is None:
        time.sleep(0.005)
    try:
        if process.wait(seconds) != 0:
            sys.exit(f"the run failed: {' '.join(command)}")
        return True
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("options", nargs="*", default=DEFAULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(arguments.folder or Path(temporary), arguments.options, arguments.kills, random.Random(arguments.seed))


def compare(base: Path, options: list[str], kills: int, draw: random.Random) -> None:
    """Run both and compare them."""
    started = time.perf_counter()
    train(base / "whole", options, None)
    length = time.perf_counter() - started
    print(f"uninterrupted: {length:.1f} s")
    metrics = base / f"{options[0]}-killed" / "metrics.csv"
    done = 0
    while done < kills:
        seconds = draw.uniform(0, length / kills)
        if train(base / "killed", options, seconds):
            print(f"the run finished after {done} kills; give it more epochs")
            break
        done += 1
        print(f"kill {done}: after {seconds:.2f} s of work, metrics.csv has {size(metrics)} bytes")
    train(base / "killed", options, None)
    recipe = options[0]
    whole, killed = (base / f"{recipe}-{name}" for name in ("whole", "killed"))
    paths = [whole / name for name in NAMES] + sorted((whole / "checkpoint").iterdir())
    differing = 0
    for path in paths:
        name = path.relative_to(whole)
        equal = (killed / name).exists() and (killed / name).read_bytes() == path.read_bytes()
        differing += not equal
        print(f"{'equal' if equal else 'DIFFERS':<8} {name}")
    print(f"{done} kills, {len(paths) - differing} of {len(paths)} files equal")
    sys.exit(1 if differing else 0)


def size(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


if __name__ == "__main__":
    main()
