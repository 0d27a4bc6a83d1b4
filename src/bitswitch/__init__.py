"""bitswitch: train a network once at several bit-widths, store it once as integers, run it at any of them."""

from bitswitch._calibrate import calibrate
from bitswitch._deploy import deploy
from bitswitch._prepare import prepare, unfreeze
from bitswitch._summary import summary
from bitswitch.checkpoint import load, save
from bitswitch.errors import BitswitchError
from bitswitch.precision import Precision
from bitswitch.switching import at, switch
from bitswitch.training import Distillation, JointTrainer, evaluate

__all__ = [
    "BitswitchError",
    "Distillation",
    "JointTrainer",
    "Precision",
    "at",
    "calibrate",
    "deploy",
    "evaluate",
    "load",
    "prepare",
    "save",
    "summary",
    "switch",
    "unfreeze",
]
