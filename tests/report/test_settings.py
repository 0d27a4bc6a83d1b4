"""Settings as text, and the commands that they came from."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import tyro

from bitswitch.cli.train import _choices
from bitswitch.recipes import RECIPES, Recipe, get_recipe
from bitswitch.report.settings import (
    NEUTRAL,
    PATHS,
    command,
    deciding,
    describe,
    differing,
    flatten,
    last_component,
)
from tests.report.run_folders import recipe

CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "nothing": {},
    "numbers": {"start": {"epochs": 0, "lr": 5e-5}, "joint": {"clip_grad_norm": 1.0, "sigma": 0.25}},
    "choices": {"joint": {"alrs": "off", "distill": "float"}, "prepare": {"first_last": 8}, "data": {"kind": "folder"}},
    "switches": {
        "run": {"channels_last": False, "compile": True},
        "prepare": {"shared": False},
        "start": {"new_head": True},
    },
    "lists": {"prepare": {"bits": (4, 3, 2), "skip": ("layer1.*", "a b"), "force": ("fc",)}},
    "one width": {"prepare": {"bits": (2,)}},
    "options": {"model": {"num_classes": 7, "options": {"width": 4, "wide": True, "rate": 0.5, "kind": "small one"}}},
    "optional": {
        "start": {"pretrained_tag": None, "weights": "a b/c.pt"},
        "data": {"validation": 5000, "folder": "d/e"},
    },
    "paths": {"start": {"checkpoint": "runs/one"}, "joint": {"sampler": "hasb", "sensitivity": "x/sensitivity.json"}},
}


def parsed(line: str) -> Recipe:
    words = shlex.split(line)
    return tyro.cli(_choices(), args=words[words.index("train") + 1 :]).recipe


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_command_parses_to_the_recipe(name: str, changes: dict[str, dict[str, Any]]) -> None:
    changed = get_recipe(name).replace(**changes)
    line = command(changed)
    assert line is not None
    assert parsed(line) == changed


@pytest.mark.parametrize("root", ["/home/somebody/", "C:\\Users\\somebody\\", "\\\\server\\share\\"])
def test_a_command_does_not_say_where_files_are_on_one_machine(root: str) -> None:
    changed = get_recipe("digits").replace(start={"checkpoint": f"{root}one", "weights": "zoo/a.safetensors"})
    line = command(changed)
    assert line is not None
    assert line.endswith("--start.weights zoo/a.safetensors --start.checkpoint one")


def test_command_says_what_differs_and_nothing_else() -> None:
    changed = get_recipe("digits").replace(joint={"epochs": 5, "alrs": "off"}, prepare={"bits": (8, 4)})
    assert command(changed) == "bitswitch train digits --prepare.bits 8 4 --joint.epochs 5 --joint.alrs off"
    assert command(get_recipe("digits"), 2) == "torchrun --nproc-per-node 2 -m bitswitch train digits"


def test_recipes_of_ones_own_have_no_command() -> None:
    own = Recipe(
        "own", *(getattr(get_recipe("digits"), n) for n in ("model", "data", "start", "prepare", "joint", "run"))
    )
    assert command(own) is None


@pytest.mark.parametrize(
    ("path", "name"), [("/a/b c/d.pt", "d.pt"), ("runs/one/", "one"), (r"C:\data\cifar10", "cifar10"), ("/", "/")]
)
def test_last_component(path: str, name: str) -> None:
    assert last_component(path) == name


def test_every_neutral_field_and_path_exists() -> None:
    assert set(flatten(get_recipe("digits"))) >= NEUTRAL | PATHS


def test_seeds_folders_and_cadences_decide_nothing() -> None:
    other = recipe(
        7,
        data={"folder": "/elsewhere", "num_workers": 3},
        run={"seed": 7, "log_every": 1, "checkpoint_every": 7, "evaluate_every": 2, "eval_batch_size": 3},
    )
    assert deciding(recipe(), 1) == deciding(other, 1)
    assert differing(deciding(recipe(), 1), deciding(other, 2)) == ["processes"]
    assert differing(deciding(recipe(), 1), deciding(recipe(run={"autocast": "bfloat16"}), 1)) == ["run.autocast"]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("/x/float-s0", "/y/float-s1", True),
        ("float-seed-0", "float-seed-1", True),
        ("runs/Seed0/float-s0", "runs/float-s1", True),
        ("float-s1", "float-s1", False),  # The run of seed 0 starts from what seed 1 has learned.
        ("resnet20.pt", "resnet21.pt", False),
        ("float-0.pt", "float-1.pt", False),
    ],
)
def test_files_to_start_from_may_belong_to_the_seed(one: str, other: str, equal: bool) -> None:
    first, second = recipe(0, start={"weights": one}), recipe(1, start={"weights": other})
    assert (deciding(first, 1) == deciding(second, 1)) is equal


def test_shared_files_are_equal_whatever_the_seeds() -> None:
    known = [deciding(recipe(seed, start={"weights": "resnet20_cifar10-8848.pt"}), 1) for seed in (0, 8, 10, 20, 8848)]
    assert all(settings == known[0] for settings in known)


def test_fields_that_do_nothing_are_left_out() -> None:
    cold, hot = recipe(joint={"temperature": 1.0}), recipe(joint={"temperature": 4.0})
    assert deciding(cold, 1) == deciding(hot, 1)
    taught = recipe(joint={"temperature": 4.0, "distill": "float"})
    assert differing(deciding(cold, 1), deciding(taught, 1)) == ["joint.distill"]
    assert differing(deciding(recipe(joint={"distill": "float"}), 1), deciding(taught, 1)) == ["joint.temperature"]


@pytest.mark.parametrize(("bits", "alike"), [((8, 6, 2), False), ((8, 2), True), ((2,), True)])
def test_two_widths_have_no_turns(bits: tuple[int, ...], alike: bool) -> None:
    every, rotating = (recipe(prepare={"bits": bits}, joint={"turns": turns}) for turns in ("all", "rotate"))
    assert (deciding(every, 1) == deciding(rotating, 1)) is alike


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("joint.epochs", 3, "joint.epochs 3"),
        ("start.weights", None, "start.weights none"),
        ("prepare.shared", False, "shared no"),
        ("prepare.skip", ("a", "b"), "skip a,b"),
        ("model.options", {"width": 4}, "model.options width=4"),
        ("recipe", "digits", "digits"),
        ("processes", 2, "processes 2"),
    ],
)
def test_settings_as_text(field: str, value: Any, text: str) -> None:
    assert describe(field, value) == text
