"""A frontier as plain data: every SubNet that was measured, what each budget gave, how good the proxies are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitswitch.mixed import Exploration, Measured, RankCorrelation, accuracy_error
from bitswitch.mixed.frontier import cost_row
from bitswitch.precision import Precision


@dataclass(frozen=True)
class FrontierData:
    """What a frontier's files and plots show.

    Attributes:
        exploration: what was found by accuracy on the images of the search.
        accuracy: of the SubNets that matter on images that the search did not see, 0…1.
        num_images: number of those images.
        correlations: of the proxies with these accuracies.
        about: further fields for the JSON file.
    """

    exploration: Exploration
    accuracy: Mapping[Precision, float]
    num_images: int
    correlations: Mapping[str, RankCorrelation] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def percent(self, row: Measured) -> float:
        """Return the accuracy of a SubNet on the unseen images in per cent."""
        return 100 * self.accuracy[row.subnet.precision]

    def error(self, row: Measured) -> float:
        """Return its standard error in per cent."""
        return 100 * accuracy_error(self.accuracy[row.subnet.precision], self.num_images)

    def rows(self) -> list[dict[str, Any]]:
        """Return a flat row for every SubNet: where it was found, accuracies, costs, and the frontiers it is on."""
        found = self.exploration
        frontiers = {cost: {row.subnet.precision for row in found.frontier(cost)} for cost in found.costs}
        return [
            {
                "precision": str(row.subnet.precision),
                "origin": found.origin(row.subnet.precision),
                "search_accuracy": row.score,
                **self._unseen(row.subnet.precision),
                **cost_row(row.subnet),
                "frontier_of": " ".join(cost for cost, names in frontiers.items() if row.subnet.precision in names),
            }
            for row in found.measured
        ]

    def _unseen(self, precision: Precision) -> dict[str, float | None]:
        accuracy = self.accuracy.get(precision)
        error = None if accuracy is None else accuracy_error(accuracy, self.num_images)
        return {"unseen_accuracy": accuracy, "unseen_error": error}

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        found = self.exploration
        within = [
            {
                "budgets": dict(part.budgets),
                "programme": str(part.optimum.subnet.precision),
                "refined": str(part.best.subnet.precision),
                "best_random": None if part.best_random is None else str(part.best_random.subnet.precision),
            }
            for part in found.within
        ]
        return {
            "format": "bitswitch-frontier",
            "version": 1,
            **self.about,
            "uniform": _names(found.uniform),
            "within": within,
            "frontier": {cost: _names(found.frontier(cost)) for cost in found.costs},
            "correlations": {name: value.to_json() for name, value in self.correlations.items()},
            "subnets": self.rows(),
        }


def _names(rows: Sequence[Measured]) -> list[str]:
    return [str(row.subnet.precision) for row in rows]
