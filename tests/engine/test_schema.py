"""engine/schema.py: valid values pass, and errors name the place of an invalid one."""

import json

import pytest

from engine.errors import UserError
from engine.schema import AnyOf, Optional, Range, SchemaError, mismatch, read_json
from engine.task.task import read_tasks

TASK = {"type": AnyOf("tagging", "classification"), "labels": [str], Optional("std"): float, Optional("n"): Range(1)}


@pytest.mark.parametrize(
    "value, shape, expected",
    [
        ({"a": {"type": "tagging", "labels": ["O"]}}, {str: TASK}, ""),
        ({"a": {"type": "tagging", "labels": ["O"], "std": 1, "more": None}}, {str: TASK}, ""),
        ({"a": {"type": "tagging"}}, {str: TASK}, "a.labels is missing"),
        ({"a": {"type": "x", "labels": []}}, {str: TASK}, 'a.type is "x", but must be "tagging" or "classification"'),
        ({"a": {"type": "tagging", "labels": ["O", 3]}}, {str: TASK}, "a.labels[1] is 3, but must be a string"),
        ({"a": {"type": "tagging", "labels": [], "std": 10**400}}, {str: TASK}, "a.std is 1000"),
        ({"a": {"type": "tagging", "labels": [], "n": 0}}, {str: TASK}, "a.n is 0, but must be a number of 1 or more"),
        ({"a": {"type": "tagging", "labels": [], "n": 1.5}}, {str: TASK}, "a.n is 1.5"),
        ([], {str: TASK}, "it is [], but must be an object"),
        (None, {str: TASK}, "it is null, but must be an object"),
        (True, int, "it is true, but must be a whole number"),
        (1, bool, "it is 1, but must be true or false"),
        (True, True, ""),
        (1, True, "it is 1"),
        (True, 1, "it is true"),
        (float("nan"), float, "it is NaN, but must be a finite number"),
        (None, AnyOf(int, None), ""),
        ("x", AnyOf(int, None), 'it is "x", but must be a whole number or null'),
        ({"anything": [1]}, object, ""),
    ],
)
def test_mismatch_error_names_the_place(value, shape, expected):
    found = mismatch(value, shape)
    assert found.startswith(expected) and bool(found) == bool(expected)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '"\ud800', "1" * 5000, None])
def test_invalid_json_is_a_one_line_error(text, tmp_path):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(SchemaError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", range(900, 1100, 3))
def test_deeply_nested_json_is_a_one_line_error(depth, tmp_path):
    (tmp_path / "a.json").write_text("[" * depth + "]" * depth)
    with pytest.raises(SchemaError):
        read_json(tmp_path / "a.json", {str: int})


def test_byte_order_mark_is_accepted(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_json(path, {"a": int}) == {"a": 1}


def test_user_task_type_needs_a_label_kind(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({"x": {"type": "my_tagging", "labels": ["a", "b"]}}))
    with pytest.raises(UserError, match=r"x.type is .my_tagging., and x.kind is not one of .*; set the kind"):
        read_tasks(path)
    path.write_text(json.dumps({"x": {"type": "my_tagging", "kind": "tagging", "labels": ["a", "b"]}}))
    assert read_tasks(path)["x"].is_tagging
