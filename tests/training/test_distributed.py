from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _ddp_worker import OPTIONS, train
from _training_networks import make_batches, make_model

from bitswitch.training import distributed, evaluate


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, by rank."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, str(Path(__file__).with_name("_ddp_worker.py")), str(folder)]
    workers = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(output)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks(results: list[dict[str, Any]]) -> None:
    assert [(r["rank"], r["size"], r["main"]) for r in results] == [(0, 2, "main"), (1, 2, None)]


@pytest.mark.parametrize("variant", list(OPTIONS))
def test_two_processes_train_the_weights_of_one(results: list[dict[str, Any]], variant: str) -> None:
    model, values = train(variant, wrap=False)
    largest = {"weights": 0.0, "scales": 0.0}
    for name, parameter in model.named_parameters():
        assert torch.equal(results[0][variant][name], results[1][variant][name]), name
        kind = "scales" if "quantizer" in name else "weights"
        difference = (parameter.detach() - results[0][variant][name]).abs().max()
        largest[kind] = max(largest[kind], float(difference))
    assert largest["weights"] <= (1e-7 if variant == "sgd" else 1e-6)
    # The gradient of a scale is a sum with much cancellation, and Adam divides its rounding by its size: 0.01 · 1e-4.
    assert largest["scales"] <= 3e-6
    for result in results:
        assert result[f"values/{variant}"] == pytest.approx(values, rel=1e-4)
    print(f"{variant}: largest difference {largest}")


def test_other_widths_have_no_gradient_and_do_not_move(results: list[dict[str, Any]]) -> None:
    assert [result["unused"] for result in results] == [[], []]


def test_sharded_evaluation_is_the_unsharded_one(results: list[dict[str, Any]]) -> None:
    expected = evaluate(make_model(), make_batches(3, size=7))
    assert [result["evaluation"] for result in results] == [expected, expected]


def test_evaluation_uses_the_statistics_of_process_0(results: list[dict[str, Any]]) -> None:
    first, second = (result["statistics"] for result in results)
    assert not torch.equal(first["before"], second["before"])
    assert torch.equal(first["after"], first["before"])
    assert torch.equal(second["after"], first["before"])
    assert first["loss"] == second["loss"] == pytest.approx(first["alone"])


def test_all_processes_stop_when_one_diverges(results: list[dict[str, Any]]) -> None:
    assert all(f"nan at step 0, precision 8, process {i}: " in result["error"] for i, result in enumerate(results))
    assert "the batch itself" in results[1]["error"]


def test_a_single_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    distributed.init("gloo")
    assert (distributed.is_initialized(), distributed.rank(), distributed.world_size()) == (False, 0, 1)
    assert distributed.is_main()
    assert list(distributed.shard(3)) == [0, 1, 2]
    values = torch.ones(2)
    assert distributed.sum_over_processes(values) is values
    distributed.barrier()
    distributed.shutdown()
