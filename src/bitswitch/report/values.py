"""A comparison as JSON values, down to single seeds."""

from __future__ import annotations

from typing import Any

from bitswitch.report.compare import Comparison, Effect
from bitswitch.report.cost import cost_of
from bitswitch.report.runs import Run
from bitswitch.report.settings import command


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return all values of all seeds as JSON values, without any path of the machine.

    Accuracies are shares, 0…1; effects are in points, 0…100.
    """
    return {
        "format": "bitswitch-comparison",
        "version": 1,
        "configurations": [
            {
                "title": configuration.title,
                "label": configuration.label,
                "settings": {name: _plain(value) for name, value in configuration.settings.items()},
                "runs": [_run(run) for run in configuration.runs],
            }
            for configuration in comparison.configurations
        ],
        "effects": [_effect(effect) for effect in comparison.effects],
    }


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "seed": run.seed,
        "processes": run.processes,
        "command": command(run.recipe, run.processes),
        "epochs": {phase: run.epochs(phase) for phase in ("float", "joint")},
        **run.results.to_json(),
        "cost": cost_of(run).to_json(),
    }


def _effect(effect: Effect) -> dict[str, Any]:
    spreads = {bits: effect.difference(bits) for bits in effect.widths}
    return {
        "field": effect.field,
        "configuration": effect.other.label,
        "against": effect.base.label,
        "points": {
            str(bits): {str(seed): value for seed, value in spread.by_seed.items()}
            for bits, spread in spreads.items()
            if spread is not None
        },
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
