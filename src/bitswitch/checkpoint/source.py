"""Where a loaded model reads the bit planes that it does not hold yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from bitswitch.checkpoint.config import CheckpointConfig
from bitswitch.checkpoint.reader import map_planes, read_codes
from bitswitch.layers.base import SwitchableLayer


class FolderPlanes:
    """The planes of a checkpoint folder, as the `source` of a model that was loaded from it.

    Args:
        folder: the checkpoint.
        config: its checked configuration. Files are identified by its hashes, so planes of another checkpoint that was
            saved to the same folder in the meantime are never mixed in.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder = folder
        self.config = config

    def refine(self, model: nn.Module, resolved: Mapping[str, int]) -> None:
        """Bring every frozen layer up to the planes that its width needs, all of them or none.

        Args:
            model: the loaded model.
            resolved: width by layer.

        Raises:
            MissingPlanesError: naming the files that are not there; the model is as it was.
            CheckpointError: a file is damaged; the model is as it was.
        """
        layers: dict[str, list[SwitchableLayer]] = {name: [] for name in self.config.weights}
        for name in resolved:
            layer = model.get_submodule(name)
            if isinstance(layer, SwitchableLayer) and layer.is_frozen:
                layers[self.config.storing(name)].append(layer)
        needed = self.config.needed(resolved)
        least = {name: min(users, key=lambda layer: layer.num_planes) for name, users in layers.items() if users}
        held: dict[str, tuple[Tensor, int]] = {
            name: (layer.codes, layer.num_planes) for name, layer in least.items() if needed[name] > layer.num_planes
        }
        if not held:
            return
        codes = read_codes(self.folder, self.config, {name: needed[name] for name in held}, held)
        for name, complete in codes.items():
            for layer in layers[name]:
                layer.refine(complete, needed[name])

    def read_planes(self, wanted: Mapping[str, range]) -> dict[str, list[Tensor]]:
        """Map planes into memory; see `bitswitch.checkpoint.reader.map_planes`."""
        return map_planes(self.folder, self.config, wanted)

    def is_in(self, folder: Path) -> bool:
        """Whether the planes are those of `folder`."""
        try:
            return os.path.samefile(self.folder, folder)
        except OSError:
            return False

    def __repr__(self) -> str:
        return f"FolderPlanes({str(self.folder)!r})"
