"""An objective that is learned from measured SubNets instead of derived from the float network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitswitch.errors import ConfigError
from bitswitch.mixed.measurements import Measured
from bitswitch.mixed.objective import ObjectiveTable
from bitswitch.mixed.space import SearchSpace

# Ridge penalties to choose from; a column is 0 or 1, scores are standardised.
_PENALTIES = tuple(float(value) for value in np.logspace(-1, 3, 17))


def fitted(space: SearchSpace, measured: Sequence[Measured]) -> ObjectiveTable:
    """Return what each layer's width costs in score, estimated from SubNets that have been measured.

    The score of a SubNet is taken as a sum over the layers: score ≈ c + Σ_l Σ_{w ≤ b_l} g_l(w), where g_l(w) is what
    the step up to width w is worth in layer l and the lowest width is worth nothing. The steps are found by ridge
    regression, whose penalty is chosen by leave-one-out errors. A proxy of the float network does not know what
    training at many widths has made up for; measurements do.

    Args:
        space: what may be chosen.
        measured: SubNets of the space and their scores, such as those of random ones; the more, the better.

    Returns:
        {layer that stores a weight: {width: −Σ g}}, an objective to be minimised, in units of the score.

    Raises:
        ConfigError: no layer has a choice, there are fewer SubNets than twice the layers with one, or all have the same
            score.
    """
    from sklearn.linear_model import RidgeCV

    choices = [(names, widths) for names, widths in space.choices if len(widths) > 1]
    if not choices:
        raise ConfigError("no layer has a choice of widths")
    if len(measured) < 2 * len(choices):
        raise ConfigError(f"{len(choices)} layers with a choice need {2 * len(choices)} SubNets; got {len(measured)}")
    scores = np.array([row.score for row in measured])
    scale = scores.std()
    if scale == 0:
        raise ConfigError(f"all {len(measured)} SubNets have the same score; nothing can be learned from them")
    widths_of = [dict(row.subnet.precision.layers) for row in measured]
    steps = [(names, bits) for names, widths in choices for bits in widths[:-1]]
    columns = np.array([[widths[names[0]] >= bits for names, bits in steps] for widths in widths_of], dtype=np.float64)
    model = RidgeCV(alphas=_PENALTIES).fit(columns, scores / scale)
    gains = dict(zip(((names[0], bits) for names, bits in steps), model.coef_ * scale, strict=True))
    table: ObjectiveTable = {}
    for group, (names, widths) in zip(space.costs.groups, space.choices, strict=True):
        worth = {bits: sum(float(gains.get((names[0], w), 0.0)) for w in widths if w <= bits) for bits in widths}
        table[group[0].stored_by] = {bits: -value for bits, value in worth.items()}
    return table
