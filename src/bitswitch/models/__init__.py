"""Models by name: a few of our own, and those of torchvision and timm."""

from bitswitch.models.digits import DigitsCNN
from bitswitch.models.registry import Architecture, build_model, list_models
from bitswitch.models.resnet_cifar import ResNetCifar
from bitswitch.models.weights import load_state, load_weights, read_weights

__all__ = [
    "Architecture",
    "DigitsCNN",
    "ResNetCifar",
    "build_model",
    "list_models",
    "load_state",
    "load_weights",
    "read_weights",
]
