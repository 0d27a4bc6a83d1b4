"""The folder of a run: its configuration, metrics and training state, owned by one process at a time.

A run that is killed at any moment continues from its last checkpoint, and leaves the same bytes in `config.json`,
`metrics.csv` and the files that its owner derives from them as one that was never interrupted. Wall-clock times
therefore go to `timing.json` and `log.txt` only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from bitswitch._files import parse_json, read_state, write_file, write_state
from bitswitch.errors import BitswitchError, CheckpointError, ConfigError
from bitswitch.training import distributed
from bitswitch.training.run_metrics import MetricsFile

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.csv"
RESULTS_NAME = "results.json"
TIMING_NAME = "timing.json"
LOG_NAME = "log.txt"
STATE_NAME = "state"

_ATTEMPTS = 100


class RunFolder:
    """A run folder that this process owns until `close`; the other processes of a group read it.

    Args:
        path: the folder; created if needed.
        config: JSON object that describes the whole run. A folder that has another one is refused.
        complete: adds to a configuration that an earlier version stored what that did not know.
        machine: what this process runs on, for timing.json.

    Raises:
        ConfigError: another process runs in the folder, it is something else than a run folder, or its configuration
            differs; the message names the first field that does.

    As a context manager it leaves nothing behind if an error comes before anything was done in a new folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        complete: Callable[[Any], Any] = lambda stored: stored,
        *,
        machine: str | None = None,
    ) -> None:
        self.path = Path(path)
        self._complete = complete
        self._machine = machine
        self.config = config
        self._lock: int | None = None
        self._made = self._fresh = False
        self._started = time.perf_counter()
        self._training: dict[str, dict[str, Any]] = {}
        refusal = None
        if distributed.is_main():
            try:
                self._open()
            except BitswitchError as error:
                refusal = error
        distributed.share_refusal(refusal)
        self.metrics = MetricsFile(self.path / METRICS_NAME, writable=distributed.is_main())

    def _open(self) -> None:
        self._made = not self.path.exists()
        has_log = (self.path / LOG_NAME).exists()
        self._lock = _make_and_lock(self.path)
        try:
            self._claim()
            self._sessions = self._past_sessions()
        except BaseException:
            if not has_log:
                (self.path / LOG_NAME).unlink(missing_ok=True)
            self.close()
            raise

    def _claim(self) -> None:
        stored = read_json(self.path / CONFIG_NAME)
        others = self._done()
        self._fresh = stored is None
        if stored is None and others:
            raise ConfigError(f"{self.path} exists and is not a run folder: it holds {others[0]!r}")
        # A run that was refused before it did anything has left its configuration alone, and may be corrected.
        refused = not others and isinstance(stored, Mapping) and stored.keys() == self.config.keys()
        if stored is None or refused:
            write_json(self.path / CONFIG_NAME, self.config)
            return
        changed = differences(self._complete(stored), json.loads(json.dumps(self.config)))
        if changed:
            name, old, new = changed[0]
            more = f" (and {len(changed) - 1} more fields differ)" if len(changed) > 1 else ""
            raise ConfigError(f"{self.path} was started with {name}={old!r}, this command says {new!r}{more}")

    def _done(self) -> list[str]:
        """Return the names of the files that are there besides what every run begins with."""
        content = {entry.name for entry in os.scandir(self.path) if not entry.name.endswith(".tmp")}
        return sorted(content - {CONFIG_NAME, LOG_NAME})

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self._fresh and not self._done():
            # It was refused before it did anything: no folder is to look like a run that can go on.
            (self.path / CONFIG_NAME).unlink(missing_ok=True)
            (self.path / LOG_NAME).unlink(missing_ok=True)
            with suppress(OSError):
                if self._made:
                    self.path.rmdir()
        self.close()

    def close(self) -> None:
        """Give the folder free."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_state(self, name: str = STATE_NAME) -> tuple[dict[str, Tensor], Any] | None:
        """Return the tensors and the JSON of the last checkpoint, or None before the first.

        Raises:
            CheckpointError: it is damaged.
        """
        return read_state(self.path, name) if (self.path / f"{name}.json").exists() else None

    @distributed.main_process_only
    def write_state(self, tensors: Mapping[str, Tensor], meta: Any, name: str = STATE_NAME) -> None:
        """Replace the checkpoint, in one step."""
        write_state(self.path, tensors, meta, name)
        self.note_time()

    @distributed.main_process_only
    def note_time(self) -> None:
        """Record where this session runs, how long it has taken so far, and the steps of each phase, in seconds."""
        own = {
            "seconds": round(time.perf_counter() - self._started, 3),
            "processes": distributed.world_size(),
            "machine": self._machine,
            "training": self._training,
        }
        write_json(self.path / TIMING_NAME, {"sessions": [*self._sessions, own]})

    def count_step(self, phase: str, seconds: float) -> None:
        """Add a training step of a phase to the times of this session."""
        done = self._training.setdefault(phase, {"steps": 0, "seconds": 0.0})
        done["steps"] += 1
        done["seconds"] += seconds

    def _past_sessions(self) -> list[Any]:
        timing = read_json(self.path / TIMING_NAME)
        sessions = timing.get("sessions") if isinstance(timing, dict) else None
        return sessions if isinstance(sessions, list) else []

    @distributed.main_process_only
    def write_results(self, results: Mapping[str, Any]) -> None:
        """Mark the run as finished."""
        write_json(self.path / RESULTS_NAME, results)

    @distributed.main_process_only
    def log(self, message: str) -> None:
        """Append a line with the time of day to log.txt."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        with open(self.path / LOG_NAME, "a", encoding="utf-8") as file:
            file.write(f"{now} {message}\n")


def _make_and_lock(path: Path) -> int | None:
    """Lock a run folder, which is made if needed.

    Raises:
        ConfigError: another process has it, or there is a file.
    """
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):  # a process that was refused has removed it in the meantime
            _make(path)
            return lock(path)
    raise ConfigError(f"{path} cannot be made: other processes keep removing it")


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        if path.is_symlink() or path.is_file() or not path.parent.is_dir():
            raise ConfigError(f"{path} is to be a run folder, but there is a file, or a link to nothing") from None


def lock(path: Path) -> int | None:
    """Lock a run folder until the descriptor returned is closed or the process ends.

    Raises:
        ConfigError: another process has it.
        FileNotFoundError: there is no such folder, or no more.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    # Not the folder itself: writers of checkpoints lock that for the length of a write.
    descriptor = os.open(path / LOG_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"another process is running in {path}") from None
    except OSError:
        # Some network file systems have no locks; a single run does not need one.
        pass
    if _is_removed(descriptor, path / LOG_NAME):
        # By a process that was refused: others lock another file.
        os.close(descriptor)
        raise FileNotFoundError(path / LOG_NAME)
    return descriptor


def _is_removed(descriptor: int, path: Path) -> bool:
    opened = os.fstat(descriptor)
    if opened.st_nlink > 0:
        return False
    # Some file systems do not count links.
    try:
        return not os.path.samestat(opened, os.stat(path))
    except FileNotFoundError:
        return True


def is_locked(path: Path) -> bool:
    """Return whether a process is running in a run folder."""
    try:
        descriptor = lock(path)
    except ConfigError:
        return True
    except FileNotFoundError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return False


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if there is no such file.

    Raises:
        CheckpointError: it is not JSON, or no file that can be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: expected a JSON file; {error.strerror}") from None
    return parse_json(raw, str(path))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON so that a reader sees the old file or the new one."""
    write_file(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def differences(expected: object, found: object, where: str = "") -> list[tuple[str, object, object]]:
    """Return (path, expected, found) for every place where two JSON values differ.

    >>> differences({"joint": {"lr": 1.0, "epochs": 3}}, {"joint": {"lr": 2.0, "epochs": 3}})
    [('joint.lr', 1.0, 2.0)]
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return [
            difference
            for key in dict.fromkeys((*expected, *found))
            for difference in differences(expected.get(key), found.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if type(expected) is type(found) and expected == found else [(where, expected, found)]
