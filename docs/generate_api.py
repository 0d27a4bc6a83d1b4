"""Fill the reference page with what the code says: signatures, arguments, results and errors.

`docs/api.md` is written by hand except between the markers

    <!-- from the code: bitswitch.prepare -->
    …
    <!-- end -->

where this script puts the signature and the docstring of the object named. Run `python docs/generate_api.py` after a
change of a docstring; a test fails as long as the page differs.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
_REGION = re.compile(r"(<!-- from the code: ([\w.]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")
_LINE_LENGTH = 110


def resolve(path: str) -> Any:
    """Return the object of a dotted path: a module followed by attributes."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ModuleNotFoundError(path)


def names(page: str) -> list[str]:
    """Return the dotted paths that a page has markers for, in order."""
    return [match[2] for match in _REGION.finditer(page)]


def fill(page: str) -> str:
    """Return the page with every region between markers written anew."""
    return _REGION.sub(lambda match: f"{match[1]}{describe(match[2])}\n{match[3]}", page)


def describe(path: str) -> str:
    """Return signature and docstring of an object as Markdown."""
    found = resolve(path)
    shown = signature(path, found)
    text = inspect.cleandoc(found.__doc__ or "")
    return (f"```py\n{shown}\n```\n\n" if shown else "") + docstring(text)


def signature(path: str, found: Any) -> str:
    """Return how an object is called, one parameter a line if one line is too short; "" if it is not called."""
    if not callable(found) or (isinstance(found, type) and issubclass(found, BaseException)):
        return ""
    parameters = list(inspect.signature(found).parameters.values())
    if _is_method(path):
        parameters = parameters[1:]
    parts: list[str] = []
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        parts.append(_parameter(parameter))
    name = _shown_name(path)
    result = "" if isinstance(found, type) else _annotation(inspect.signature(found).return_annotation, " -> ")
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= _LINE_LENGTH:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def _is_method(path: str) -> bool:
    owner, _, name = path.rpartition(".")
    is_class = owner.rpartition(".")[2][0].isupper()
    return is_class and not isinstance(inspect.getattr_static(resolve(owner), name), classmethod)


def _shown_name(path: str) -> str:
    """Return what a reader writes: `bs.prepare`, `trainer`-like methods with their class, other functions bare."""
    *owners, name = path.split(".")
    if owners == ["bitswitch"]:
        return f"bs.{name}"
    return f"{owners[-1]}.{name}" if owners[-1][0].isupper() else name


def _parameter(parameter: inspect.Parameter) -> str:
    prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{prefix}{parameter.name}{_annotation(parameter.annotation, ': ')}"
    if parameter.default is parameter.empty:
        return text
    default = getattr(parameter.default, "__name__", repr(parameter.default))
    return f"{text}{' = ' if ':' in text else '='}{default}"


def _annotation(value: object, before: str) -> str:
    if value is inspect.Parameter.empty:
        return ""
    return f"{before}{value if isinstance(value, str) else getattr(value, '__name__', value)}"


def docstring(text: str) -> str:
    """Return a docstring in Google style as Markdown."""
    text = re.split(r"^>>> ", text, maxsplit=1, flags=re.MULTILINE)[0].rstrip()
    pattern = rf"^({'|'.join(_SECTIONS)}):\n((?:[ ]+.*\n?|\n)+)"
    parts = re.split(pattern, text, flags=re.MULTILINE)
    markdown = [_paragraphs(parts[0])]
    for title, body, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        markdown.append(f"**{title}**\n\n{_section(textwrap.dedent(body).strip(), listed=title not in _PROSE)}")
        markdown.append(_paragraphs(rest))
    return "\n\n".join(part for part in markdown if part)


_PROSE = ("Returns", "Yields")


def _paragraphs(text: str) -> str:
    return "\n\n".join(_joined(part) for part in text.strip().split("\n\n")) if text.strip() else ""


def _section(body: str, *, listed: bool) -> str:
    if not listed or not re.match(r"[\w*, ]+:", body):
        return _joined(body)
    items = re.split(r"\n(?=\S)", body)
    return "\n".join(_item(item) for item in items)


def _item(item: str) -> str:
    name, _, meaning = item.partition(":")
    return f"- `{name.strip()}`: {_joined(meaning)}"


def _joined(text: str) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines())


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
