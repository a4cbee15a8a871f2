"""A plan is checked when it is made, and has one text form, one fingerprint and one way to disagree with another."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse_runtimes.diffusion.plan import SplitPlan, require_same_plan
from collafuse_runtimes.errors import ArtefactError, InputError, PlanMismatch
from collafuse_runtimes.files.plan_file import read_plan, write_plan
from collafuse_runtimes.files.sealed import write_json

PLAN = SplitPlan((1, 64, 64))
FINGERPRINT = "4ef34fa5ef38b660dc7f5097e21bb29ff6eeb3e7b0a23ed4681a86ee9cc4d81a"

plans = st.builds(
    SplitPlan,
    image_shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 4096), st.integers(1, 4096)),
    timesteps=st.integers(2, 1000),
    schedule=st.sampled_from(["cosine", "linear"]),
    cut_ratio=st.floats(0, 1),
)


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("cut_ratio", -0.1, "a number in [0, 1]"),
        ("cut_ratio", 1.1, "a number in [0, 1]"),
        ("cut_ratio", math.nan, "a number in [0, 1]"),
        ("cut_ratio", "0.2", "a number in [0, 1]"),
        ("cut_ratio", True, "a number in [0, 1]"),
        ("cut_ratio", None, "a number in [0, 1]"),
        ("timesteps", 1, "an integer from 2 to 1000"),
        ("timesteps", 1001, "an integer from 2 to 1000"),
        ("timesteps", True, "an integer from 2 to 1000"),
        ("timesteps", 100.0, "an integer from 2 to 1000"),
        ("schedule", "quadratic\nx", "cosine or linear"),
        ("prediction_type", "v_prediction", "epsilon"),
        ("value_range", (0.0, 1.0), "(-1.0, 1.0)"),
        ("image_shape", (2, 64, 64), "(C, H, W) with C 1 or 3"),
        ("image_shape", (1, 64), "(C, H, W) with C 1 or 3"),
        ("image_shape", (1, 0, 64), "(C, H, W) with C 1 or 3"),
        ("image_shape", (1, 64, 4097), "(C, H, W) with C 1 or 3"),
        ("image_shape", (True, 64, 64), "(C, H, W) with C 1 or 3"),
        ("image_shape", [1, 64, 64], "(C, H, W) with C 1 or 3"),
    ],
)
def test_bad_values_are_named_in_one_line(field: str, value: Any, valid: str) -> None:
    with pytest.raises(InputError) as caught:
        SplitPlan(**{"image_shape": (1, 64, 64), field: value})
    message = str(caught.value)
    shown = {"nan": "NaN"}.get(repr(value), repr(value))
    assert message.startswith(f"plan field {field} is {shown}; valid: {valid}")
    assert len(message.splitlines()) == 1


@settings(max_examples=100, deadline=None)
@given(plans)
def test_json_round_trip_keeps_plan_and_fingerprint(plan: SplitPlan) -> None:
    again = SplitPlan.from_dict(json.loads(plan.canonical_json()))
    assert again == plan
    assert again.fingerprint == plan.fingerprint


@settings(max_examples=100, deadline=None)
@given(plans, plans)
def test_plans_are_equal_exactly_when_their_fingerprints_are(a: SplitPlan, b: SplitPlan) -> None:
    assert (a == b) == (a.fingerprint == b.fingerprint)


def test_the_canonical_form_and_fingerprint_never_change() -> None:
    assert PLAN.canonical_json() == (
        '{"cut_ratio":0.2,"image_shape":[1,64,64],"prediction_type":"epsilon","schedule":"cosine","timesteps":100,'
        '"value_range":[-1.0,1.0]}'
    )
    assert PLAN.fingerprint == FINGERPRINT


def test_spellings_of_one_value_share_a_fingerprint() -> None:
    spellings: list[dict[str, Any]] = [{"cut_ratio": c} for c in (0, 0.0, -0.0)]
    spellings += [{"cut_ratio": 0.0, "value_range": (-1, 1)}]
    assert len({SplitPlan((1, 8, 8), **fields).fingerprint for fields in spellings}) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": None}, "the plan lacks schedule; valid: exactly cut_ratio, image_shape"),
        ({"cutratio": 0.2}, "the plan has unknown fields ['cutratio']; valid: exactly cut_ratio, image_shape"),
        ({"line\nbreak": 0.2}, "the plan has unknown fields ['line\\nbreak']; valid: exactly"),
    ],
)
def test_missing_and_unknown_fields_are_named(change: dict[str, Any], message: str) -> None:
    data = {key: value for key, value in {**PLAN.to_dict(), **change}.items() if value is not None}
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        SplitPlan.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "plan", 3])
def test_what_is_no_object_is_no_plan(data: Any) -> None:
    with pytest.raises(InputError, match=f"found {type(data).__name__}$"):
        SplitPlan.from_dict(data)


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("image_shape", (3, 64, 64), "(3, 64, 64)"),
        ("timesteps", 50, "50"),
        ("schedule", "linear", "linear"),
        ("cut_ratio", 0.5, "0.5"),
    ],
)
def test_a_disagreement_names_the_field_and_both_values(field: str, value: Any, shown: str) -> None:
    other = SplitPlan(**{"image_shape": (1, 64, 64), field: value})
    expected = f"plans disagree on {field}: head.head has {getattr(PLAN, field)}, x.tc has {shown};"
    with pytest.raises(PlanMismatch, match=f"^{re.escape(expected)}"):
        require_same_plan(PLAN, "head.head", other, "x.tc")


def test_the_cut_alone_may_differ_where_allowed() -> None:
    require_same_plan(PLAN, "a", PLAN.with_cut_ratio(0.6), "b", except_cut=True)
    with pytest.raises(PlanMismatch, match="disagree on timesteps"):
        require_same_plan(PLAN, "a", SplitPlan((1, 64, 64), timesteps=10), "b", except_cut=True)


def test_plan_file_round_trip(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", PLAN)
    assert read_plan(tmp_path / "plan.json") == PLAN


def test_a_plan_file_edited_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, PLAN)
    path.write_text(path.read_text().replace('"cut_ratio": 0.2', '"cut_ratio": 0.3'))
    with pytest.raises(ArtefactError, match="does not match its own sha256"):
        read_plan(path)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "found NoneType"),
        ({"plan": {**PLAN.to_dict(), "timesteps": 1}, "fingerprint": FINGERPRINT}, "plan field timesteps is 1"),
        ({"plan": PLAN.to_dict(), "fingerprint": "0" * 64}, "fingerprint is not that of the plan"),
        ({"plan": PLAN.to_dict()}, "fingerprint is not that of the plan"),
    ],
)
def test_a_sealed_file_with_a_bad_plan_is_refused(tmp_path: Path, payload: dict[str, Any], message: str) -> None:
    write_json(tmp_path / "plan.json", "collafuse-plan", payload)
    with pytest.raises(ArtefactError, match=message):
        read_plan(tmp_path / "plan.json")
