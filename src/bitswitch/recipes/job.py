"""A recipe from beginning to end: float network, joint training, checkpoint, evaluation, report."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitswitch._calibrate import calibrate
from bitswitch._prepare import prepare
from bitswitch.bench.machine import machine
from bitswitch.checkpoint import load, read_info, save
from bitswitch.data.order import derive_seed
from bitswitch.errors import ConfigError
from bitswitch.layers.table import state_of
from bitswitch.mixed import Sensitivity
from bitswitch.models import build_model
from bitswitch.recipes.config import PrepareConfig, Recipe
from bitswitch.recipes.convert import from_json, to_json
from bitswitch.recipes.loaders import RecipeData
from bitswitch.recipes.phases import Evaluated, FloatPhase, JointPhase, autocast_type, float_accuracy
from bitswitch.recipes.results import Results
from bitswitch.recipes.start import FLOAT_STATE, earlier_float_state, load_trained
from bitswitch.recipes.stored import CHECKPOINT_FOLDER, RECIPE_NAME, architecture_of
from bitswitch.recipes.supernet import make_sampler
from bitswitch.report import write_report
from bitswitch.training import distributed, evaluate
from bitswitch.training.run import RunFolder, write_json
from bitswitch.training.run_loop import Cadence, Observer, run_phase
from bitswitch.training.run_state import load_model_state, model_state


def run_config(recipe: Recipe) -> dict[str, Any]:
    """Return what config.json of a run folder holds: all that its results depend on."""
    return completed({"recipe": to_json(recipe), "processes": distributed.world_size()})


def completed(config: Any) -> Any:
    """Return a stored configuration with the defaults of fields that are newer than it."""
    if not isinstance(config, dict) or "recipe" not in config:
        return config
    return {**config, "recipe": to_json(from_json(Recipe, config["recipe"], "recipe"))}


def run_recipe(recipe: Recipe, path: str | os.PathLike[str], observer: Observer | None = None) -> Results:
    """Run a recipe in a folder, or continue what was begun there.

    Under torchrun all processes call it; the first one writes.

    Args:
        recipe: what to do.
        path: the run folder.
        observer: is told what happens.

    Returns:
        The results; those of a finished run are read.

    Raises:
        ConfigError: the recipe is invalid, or the folder belongs to another one.
        CheckpointError: a file of the folder is damaged.
        DivergenceError: training failed.
    """
    recipe.check()
    device = distributed.init("gloo" if recipe.run.device == "cpu" else None)
    with RunFolder(path, run_config(recipe), completed, machine=str(machine(bandwidth=False))) as folder:
        done = Results.read(folder.path)
        if done is None:
            with _deterministic(recipe.run.deterministic):
                done = _Job(recipe, folder, device, observer or Observer()).run()
            folder.write_results(done.to_json())
            folder.note_time()
        if distributed.is_main():
            write_report(folder.path)
        distributed.barrier()
        return done


class _Job:
    def __init__(self, recipe: Recipe, folder: RunFolder, device: torch.device, observer: Observer) -> None:
        self.recipe = recipe
        self.folder = folder
        self.device = device
        self.observer = observer
        self.data = RecipeData(recipe.data, recipe.run, device)
        self.held_out = self.data.held_out()
        # Choices are made by what is seen on the way, which then must not be the images of the final figures.
        self.evaluated = Evaluated(self.held_out, "held-out")
        if recipe.data.validation is not None:
            self.evaluated = Evaluated(self.data.validation(), "validation")
        run = recipe.run
        self.cadence = Cadence(run.log_every, run.checkpoint_every, run.evaluate_every)

    def run(self) -> Results:
        threads = torch.get_num_threads()
        self.folder.log(f"{distributed.world_size()} processes on {self.device.type}, {threads} threads")
        float_network = self._float_network()
        self._seed(1)
        network = self._prepared(float_network)
        sampler = make_sampler(self.recipe, network, float_network, self.data, self.folder.path)
        self._seed(1, distributed.rank())
        loader = self.data.training(self.recipe.joint.batch_size, seed=derive_seed(self.recipe.run.seed, 1))
        phase = JointPhase(network, float_network, self.recipe, loader, self.evaluated, self.device, sampler)
        run_phase(phase, self.folder, self.cadence, self.observer)
        return self._finish(network, float_network)

    def _seed(self, *key: int) -> None:
        torch.manual_seed(derive_seed(self.recipe.run.seed, *key))

    def _place(self, network: nn.Module) -> nn.Module:
        network = network.to(self.device)
        if self.recipe.run.channels_last:
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return network

    def _float_network(self) -> nn.Module:
        """Return the trained float network: from this folder if it is there already."""
        start, model = self.recipe.start, self.recipe.model
        stored = self.folder.read_state(FLOAT_STATE)
        earlier = None if stored is not None else earlier_float_state(start.checkpoint)
        given = stored is not None or earlier is not None
        # Every process builds the same network; then each draws its own dropout.
        self._seed(0)
        network = build_model(
            model.name,
            num_classes=model.num_classes,
            pretrained=(start.pretrained_tag or True) if start.pretrained and not given else False,
            weights=None if given else start.weights,
            new_head=start.new_head,
            **model.options,
        )
        network = self._place(network)
        self.data.check_outputs(network)
        if stored is not None:
            load_model_state(network, stored[0])
            return network.eval()
        if earlier is not None:
            load_model_state(network, earlier)
            start = dataclasses.replace(start, epochs=0)
        self._rehearse(network)
        self._seed(0, distributed.rank())
        batch_size = start.batch_size if start.epochs else self.recipe.joint.batch_size
        loader = self.data.training(batch_size, seed=self.recipe.run.seed)
        phase = FloatPhase(network, start, autocast_type(self.recipe), loader, self.evaluated, self.device)
        run_phase(phase, self.folder, self.cadence, self.observer)
        distributed.share_buffers(network)
        self.folder.write_state(model_state(network), None, FLOAT_STATE)
        distributed.barrier()
        return network.eval()

    def _rehearse(self, network: nn.Module) -> None:
        """Let joint training refuse what it cannot do before the float network takes its time."""
        joint = self.recipe.joint
        self.data.training(joint.batch_size, seed=0)
        if joint.sensitivity is not None:
            Sensitivity.load(joint.sensitivity, network)
        prepared = self._switchable(network, next(iter(self.data.calibration(joint.batch_size)))[0])
        if self.recipe.start.checkpoint is not None:
            load_trained(prepared, network, self.recipe)

    def _prepared(self, network: nn.Module) -> nn.Module:
        batches = list(
            itertools.islice(
                self.data.calibration(self.recipe.joint.batch_size), self.recipe.prepare.calibration_batches
            )
        )
        prepared = self._switchable(network, batches[0][0])
        if self.recipe.start.checkpoint is None:
            calibrate(prepared, batches)
        else:
            load_trained(prepared, network, self.recipe)
        return prepared

    def _switchable(self, network: nn.Module, images: Tensor) -> nn.Module:
        config = self.recipe.prepare
        return prepare(
            network,
            config.bits,
            example_inputs=images[:2],
            skip=config.skip,
            force=config.force,
            first_last=config.first_last,
            granularity=config.granularity,
            group_size=config.group_size,
            activations=config.activations,
            batch_norm=config.batch_norm,
            shared=config.shared,
            scale_parametrization=config.scale_parametrization,
            gradient_scale=config.gradient_scale,
            midrise=config.midrise,
            activation_bits=_activation_bits(config),
        )

    def _finish(self, network: nn.Module, float_network: nn.Module) -> Results:
        """Store the network and evaluate what was stored, and the float network, on the held-out images."""
        architecture = architecture_of(self.recipe.model)
        folder = self.folder.path / CHECKPOINT_FOLDER
        if distributed.is_main():
            save(network, folder, precision=state_of(network).bits[0], architecture=architecture.to_json())
            write_json(folder / RECIPE_NAME, to_json(self.recipe))
        distributed.barrier()
        stored = load(folder, into=self._place(architecture.build()))
        accuracy = {bits: value for bits, value in evaluate(stored, self.held_out).items() if isinstance(bits, int)}
        info = read_info(folder)
        reference = float_accuracy(float_network, self.held_out, self.device)
        return Results(reference, accuracy, info.bytes_at, info.float_bytes)


def _activation_bits(config: PrepareConfig) -> dict[int, int]:
    """Return the width of inputs by that of weights.

    Raises:
        ConfigError: there are not as many widths of inputs as of weights.
    """
    if not config.activation_bits:
        return {}
    if len(config.activation_bits) != len(config.bits):
        raise ConfigError(
            f"prepare.activation-bits: {len(config.activation_bits)} widths of inputs for {len(config.bits)} of weights"
        )
    return dict(zip(config.bits, config.activation_bits, strict=True))


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Let PyTorch refuse operations that give other results in every run, inside the context."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    if wanted:
        # cuBLAS reads it when it starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # It would write every new tensor twice, an eighth of a step's time; no result here reads what was not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # pyright: ignore[reportAttributeAccessIssue]
