"""The library's own exceptions.

Every error that bitswitch raises on purpose derives from `BitswitchError` and, in addition, from the built-in exception
that a caller would expect (`ValueError`, `TypeError` or `KeyError`), so both styles of handling work.
"""

from __future__ import annotations


class BitswitchError(Exception):
    """Base class of every error that bitswitch raises on purpose."""


class ArgumentError(BitswitchError, TypeError):
    """An argument has the wrong type."""


class PrecisionError(BitswitchError, ValueError):
    """A bit-width or a mapping of bit-widths is malformed, or asks for a width that was not prepared."""


class UnknownLayerError(BitswitchError, KeyError):
    """A layer was named that the model does not have, or that is not quantized."""

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would quote and escape a whole sentence.
        return str(self.args[0]) if self.args else ""


class PrepareError(BitswitchError, ValueError):
    """A model cannot be made switchable as asked, or a model that is not prepared was given."""


class CalibrationError(BitswitchError, ValueError):
    """Scales are missing, or the data given to set them is unusable."""


class CheckpointError(BitswitchError, ValueError):
    """A checkpoint is damaged, altered, hostile, or belongs to another network."""


class MissingPlanesError(CheckpointError):
    """A width needs bit planes whose files are not there."""


class DivergenceError(BitswitchError, ValueError):
    """A training loss became NaN or infinite."""


class ConfigError(BitswitchError, ValueError):
    """A recipe, run folder, data set or command-line option is invalid."""


class BitswitchWarning(UserWarning):
    """Something that a user should know and that is not an error, such as a layer that stays in full precision."""
