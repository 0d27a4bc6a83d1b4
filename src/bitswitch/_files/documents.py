"""JSON, read strictly, and JSON documents that carry a hash of themselves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from bitswitch.errors import ArgumentError, CheckpointError

# A document holds the table of a network's layers: 500 layers need about 200 kB.
MAX_DOCUMENT_BYTES = 4 << 20
# What parsing can cost: a value takes up to about 100 bytes of memory, however few it takes in the file.
MAX_JSON_VALUES = 250_000
MAX_JSON_DEPTH = 64
# Enough for the 128-bit state of a random number generator.
MAX_JSON_DIGITS = 40

SEAL_START = b'{"sha256":"'
_SEAL_END = b'",'
_SEAL_LENGTH = len(SEAL_START) + 64 + len(_SEAL_END)
_STRUCTURE = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)


def canonical_json(value: Any) -> bytes:
    """Return the canonical form: ASCII, no whitespace, keys sorted by code point.

    Raises:
        ArgumentError: the value is not JSON (another type, NaN, an infinity, endless nesting).
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"not representable as JSON: {error}") from None
    return text.encode("ascii")


def parse_json(raw: bytes, where: str) -> Any:
    """Parse JSON strictly: UTF-8, no duplicate keys, no NaN or infinity, bounded depth, numbers and count of values.

    Args:
        raw: the text.
        where: what an error calls it, for example a file name.

    Raises:
        CheckpointError: anything else.
    """
    _check_structure(raw, where)

    def refuse(text: str) -> NoReturn:
        raise ValueError(f"{text} is not a JSON number")

    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=refuse,
            parse_int=_bounded_int,
            parse_float=_finite_float,
        )
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{where}: expected JSON; {_first_words(error)}") from None


def seal(members: Mapping[str, Any]) -> bytes:
    """Return a document: the canonical JSON of `members`, with its own SHA-256 as the first member.

    The hash is that of the document without the member "sha256", so it can be checked without parsing anything: it
    covers `{` and all that follows the 77 bytes `{"sha256":"<64 hexadecimal digits>",`.

    Raises:
        ArgumentError: `members` is not JSON, or is beyond what `unseal` accepts.

    >>> unseal(seal({"a": 1}), "a.json")
    {'a': 1}
    """
    body = canonical_json(dict(members)) + b"\n"
    sealed = SEAL_START + hashlib.sha256(body).hexdigest().encode() + _SEAL_END + body[1:]
    try:
        unseal(sealed, "the document")
    except CheckpointError as error:
        raise ArgumentError(f"cannot be stored: {error}") from None
    return sealed


def unseal(raw: bytes, where: str) -> dict[str, Any]:
    """Check the hash of a document and return its members, without the hash.

    Raises:
        CheckpointError: the document is too large, was altered, or is not JSON.
    """
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise CheckpointError(f"{where}: expected at most {MAX_DOCUMENT_BYTES} bytes, found {len(raw)}")
    start, digest = raw[: len(SEAL_START)], raw[len(SEAL_START) : _SEAL_LENGTH - len(_SEAL_END)]
    if start != SEAL_START or raw[_SEAL_LENGTH - len(_SEAL_END) : _SEAL_LENGTH] != _SEAL_END:
        raise CheckpointError(f"{where}: expected a document that begins with its sha256, found {raw[:16]!r}")
    body = b"{" + raw[_SEAL_LENGTH:]
    found = hashlib.sha256(body).hexdigest()
    if digest != found.encode():
        raise CheckpointError(
            f"{where}: was altered; expected the sha256 {digest[:64].decode('ascii', 'replace')!r}, found {found!r}"
        )
    members = parse_json(body, where)
    if not isinstance(members, dict) or "sha256" in members:
        raise CheckpointError(f"{where}: expected a JSON object with one member 'sha256'")
    return members


def _check_structure(raw: bytes, where: str) -> None:
    """Bound depth and number of values before the parser allocates anything."""
    # Those inside strings count too, so that there is nothing to parse yet.
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise CheckpointError(f"{where}: expected JSON with at most {MAX_JSON_VALUES} commas and opening brackets")
    depth = 0
    in_string = False
    for match in _STRUCTURE.finditer(raw):
        token = match[0]
        if token == b'"':
            in_string = not in_string
        elif in_string or token[0] == 0x5C:
            continue
        else:
            depth += 1 if token in b"[{" else -1
            if depth > MAX_JSON_DEPTH:
                raise CheckpointError(f"{where}: expected JSON nested at most {MAX_JSON_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        again = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {again!r} occurs twice")
    return members


def _bounded_int(text: str) -> int:
    if len(text.lstrip("-")) > MAX_JSON_DIGITS:
        raise ValueError(f"the number {text[:24]}… has more than {MAX_JSON_DIGITS} digits")
    return int(text)


def _finite_float(text: str) -> float:
    if len(text) > MAX_JSON_DIGITS:
        raise ValueError(f"the number {text[:24]}… has more than {MAX_JSON_DIGITS} characters")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:24]} is infinite")
    return value


def _first_words(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__
