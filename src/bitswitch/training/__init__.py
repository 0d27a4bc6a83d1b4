"""Joint training of all widths: Algorithms A.1 and A.2, ALRS, distillation, evaluation, many processes."""

from bitswitch.training.alrs import eta, learning_rate
from bitswitch.training.distill import Distillation
from bitswitch.training.distributed import wrap_ddp
from bitswitch.training.evaluate import evaluate
from bitswitch.training.joint import JointTrainer
from bitswitch.training.losses import CrossEntropy, LossFn
from bitswitch.training.memory import keep_freed_memory
from bitswitch.training.samplers import Sampler
from bitswitch.training.steps import StepResult, WidthResult

__all__ = [
    "CrossEntropy",
    "Distillation",
    "JointTrainer",
    "LossFn",
    "Sampler",
    "StepResult",
    "WidthResult",
    "eta",
    "evaluate",
    "keep_freed_memory",
    "learning_rate",
    "wrap_ddp",
]
