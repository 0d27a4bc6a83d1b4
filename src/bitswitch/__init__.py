"""bitswitch: train a network once at several bit-widths, store it once as integers, run it at any of them."""

from bitswitch._calibrate import calibrate
from bitswitch._prepare import prepare, unfreeze
from bitswitch.errors import BitswitchError
from bitswitch.precision import Precision
from bitswitch.switching import at, switch

__all__ = ["BitswitchError", "Precision", "at", "calibrate", "prepare", "switch", "unfreeze"]
