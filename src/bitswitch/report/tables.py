"""The figures of a run as rows of text, for terminals and pages alike."""

from __future__ import annotations

from collections.abc import Mapping

from bitswitch._summary import format_bytes

ACCURACY_HEADER = ("width", "accuracy %", "against float", "size", "of float32")


def accuracy_rows(
    accuracy: Mapping[int, float], float_accuracy: float, bytes_at: Mapping[int, int], float_bytes: int
) -> list[tuple[str, str, str, str, str]]:
    """Return a row for the float network and one a width, highest first.

    Args:
        accuracy: by width, 0…1.
        float_accuracy: of the float network.
        bytes_at: bytes that each width needs.
        float_bytes: bytes of the float network.
    """
    rows = [("float", f"{100 * float_accuracy:.2f}", "", format_bytes(float_bytes), "100 %")]
    for bits in sorted(accuracy, reverse=True):
        size = bytes_at.get(bits)
        rows.append(
            (
                f"{bits} bits",
                f"{100 * accuracy[bits]:.2f}",
                f"{100 * (accuracy[bits] - float_accuracy):+.2f}",
                "–" if size is None else format_bytes(size),
                "–" if size is None else f"{100 * size / float_bytes:.1f} %",
            )
        )
    return rows
