"""Mixed precision: sensitivity of layers, sampling, search and frontier (Algorithms 1, 2 and A.3, arXiv:2502.01199)."""

from __future__ import annotations

from bitswitch.mixed.correlation import RankCorrelation, rank_correlations
from bitswitch.mixed.cost import Cost, CostTable, additive_latency, measure_costs
from bitswitch.mixed.extract import extract
from bitswitch.mixed.fitted import fitted
from bitswitch.mixed.frontier import Exploration, WithinBudget, accuracy_error, explore, pareto, to_csv, to_rows
from bitswitch.mixed.hasb import HASB, UniformSampling
from bitswitch.mixed.hessian import hessian_trace
from bitswitch.mixed.input_errors import input_errors
from bitswitch.mixed.measurements import Measured, Measurements
from bitswitch.mixed.objective import perturbation, weighted_bits
from bitswitch.mixed.reestimate import reestimate_batch_norm, reestimated
from bitswitch.mixed.refine import random_subnets, refine
from bitswitch.mixed.search import search
from bitswitch.mixed.sensitivity import Sensitivity, Trace
from bitswitch.mixed.space import InfeasibleError, SearchSpace, SubNet

__all__ = [
    "HASB",
    "Cost",
    "CostTable",
    "Exploration",
    "InfeasibleError",
    "Measured",
    "Measurements",
    "RankCorrelation",
    "SearchSpace",
    "Sensitivity",
    "SubNet",
    "Trace",
    "UniformSampling",
    "WithinBudget",
    "accuracy_error",
    "additive_latency",
    "explore",
    "extract",
    "fitted",
    "hessian_trace",
    "input_errors",
    "measure_costs",
    "pareto",
    "perturbation",
    "random_subnets",
    "rank_correlations",
    "reestimate_batch_norm",
    "reestimated",
    "refine",
    "search",
    "to_csv",
    "to_rows",
    "weighted_bits",
]
