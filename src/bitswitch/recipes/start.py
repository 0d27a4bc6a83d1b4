"""Where joint training starts: from what an earlier one has learned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from bitswitch._files import read_state
from bitswitch._prepare import unfreeze
from bitswitch.checkpoint import load
from bitswitch.errors import CheckpointError, ConfigError
from bitswitch.layers.norm import PerWidthNorm
from bitswitch.layers.table import QuantizerOptions, state_of
from bitswitch.recipes.config import Recipe
from bitswitch.recipes.stored import checkpoint_folder, recipe_of_run, stored_recipe
from bitswitch.training.run import RESULTS_NAME, STATE_NAME, differences
from bitswitch.training.run_state import load_model_state, under_prefix

FLOAT_STATE = "float-model"


def earlier_float_state(path: str | None) -> dict[str, Tensor] | None:
    """Return the float network of an earlier run, or None if `path` is not the folder of one."""
    if path is None or not (Path(path) / f"{FLOAT_STATE}.json").exists():
        return None
    return read_state(Path(path), FLOAT_STATE)[0]


def load_trained(network: nn.Module, float_network: nn.Module, recipe: Recipe) -> None:
    """Give a prepared network all that the one of `start.checkpoint` has learned.

    Args:
        network: prepared as the recipe says, not calibrated yet.
        float_network: of the same architecture.
        recipe: of the job.

    Raises:
        ConfigError: there is no finished run or checkpoint, or its network was prepared in another way, except that
            transitional BatchNorms may start from per-width ones.
        CheckpointError: it cannot be read.
    """
    assert recipe.start.checkpoint is not None
    path = Path(recipe.start.checkpoint)
    _check_preparation(path, recipe)
    try:
        load_model_state(network, _for_pairs(_learned(path, float_network, state_of(network).options), network))
    except CheckpointError as error:
        raise ConfigError(f"start.checkpoint={str(path)!r} cannot be used: {error}") from None
    state_of(network).calibrated = True


def _check_preparation(path: Path, recipe: Recipe) -> None:
    earlier = recipe_of_run(path) or stored_recipe(path)
    if earlier is None:
        return
    before, now = asdict(earlier.prepare), asdict(recipe.prepare)
    for values, prepare in ((before, earlier.prepare), (now, recipe.prepare)):
        del values["calibration_batches"]
        # Said in another way, these may be the same.
        codes = {width: prepare.codes_of(width) for width in prepare.bits}
        values["midrise"] = tuple(width for width, (midrise, _) in codes.items() if midrise)
        values["activation_bits"] = tuple(inputs for _, inputs in codes.values())
    if before["batch_norm"] == "per-width":
        del before["batch_norm"], now["batch_norm"]
    for name, old, new in differences(before, now)[:1]:
        raise ConfigError(f"the network of {path} has prepare.{name}={old!r}; this recipe says {new!r}")


def _learned(path: Path, float_network: nn.Module, options: QuantizerOptions) -> dict[str, Tensor]:
    """Return the state dict of the trainable network of a folder: float weights if it has them, else its integers."""
    if (path / f"{STATE_NAME}.json").exists():
        if not (path / RESULTS_NAME).exists():
            raise ConfigError(f"start.checkpoint: the run in {path} is not finished")
        return under_prefix("model", read_state(path, STATE_NAME)[0])
    network = load(checkpoint_folder(path), into=float_network)
    # Of a checkpoint alone it is not known how it was prepared, and its scales would fit other codes.
    for name in ("midrise", "activation_bits"):
        old, new = getattr(state_of(network).options, name), getattr(options, name)
        if old != new:
            raise ConfigError(f"the network of {path} has {name}={old!r}; this recipe says {new!r}")
    unfreeze(network)
    return network.state_dict()


def _for_pairs(learned: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Let every pair of widths of a transitional BatchNorm start with what the own width has learned."""
    used: set[str] = set()
    added: dict[str, Tensor] = {}
    for name, norm in network.named_modules():
        if not isinstance(norm, PerWidthNorm) or not norm.is_transitional:
            continue
        for key, own in norm.norms.items():
            for part in own.state_dict():
                source = f"{name}.norms.{key.split('-')[0]}.{part}"
                if source in learned:
                    used.add(source)
                    added[f"{name}.norms.{key}.{part}"] = learned[source]
    return {name: tensor for name, tensor in learned.items() if name not in used} | added
