"""One trained head serves every plan with a cut up to its own: it saw all timesteps below that."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from command_line import refusal, run_cli
from heads import PLAN, calibration, checkpoint, default_head, exported, inputs, torch_trajectory
from hypothesis import given
from hypothesis import strategies as st

from collafuse_export import ExportSettings, export_head
from collafuse_export.low_precision import check_calibration
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.diffusion.samplers import Sampler
from collafuse_runtimes.engines import EngineOptions, open_engine
from collafuse_runtimes.errors import InputError, PlanMismatch
from collafuse_runtimes.files.bundle import HeadBundle, read_bundle
from collafuse_runtimes.files.checkpoint import Checkpoint, NetworkConfig, require_trained_for
from collafuse_runtimes.files.handover import write_handover
from collafuse_runtimes.files.images import to_uint8
from collafuse_runtimes.infer import ARRAY_FILE
from collafuse_runtimes.verify import verify_bundle

SMALLER = PLAN.with_cut_ratio(0.2)  # cut 10 of a head that was trained for 20


@lru_cache
def smaller_head() -> HeadBundle:
    return exported(
        "smaller.head", checkpoint(PLAN), ExportSettings(cut_ratio=0.2, step_counts=(10, 4), sampler=Sampler())
    )


def test_every_step_is_the_torch_networks_from_the_smaller_cut() -> None:
    bundle = smaller_head()
    assert bundle.plan == SMALLER and read_bundle(bundle.path) == bundle
    assert bundle.row_range(10).transitions == SMALLER.client_transitions()
    assert verify_bundle(bundle).passed
    x_tc, _ = inputs(bundle, 3)
    for steps in (10, 4):
        expected = torch_trajectory(bundle, steps, x_tc, None, 0, source=checkpoint(PLAN))
        states: list[np.ndarray] = []
        with open_engine(bundle) as engine:
            engine.denoise(x_tc, steps, on_step=lambda _, x, out=states: out.append(x.copy()))
        assert len(states) == steps
        assert max(np.abs(a - b).max() for a, b in zip(states, expected, strict=True)) <= 1e-4


def test_it_finishes_what_the_larger_head_began() -> None:
    """A server that goes on to the smaller cut leaves the rest of the same trajectory."""
    x_tc, _ = inputs(default_head(), 2)
    states: list[np.ndarray] = []
    with open_engine(default_head()) as engine:
        engine.denoise(x_tc, 20, on_step=lambda _, x: states.append(x.copy()))
    with open_engine(smaller_head()) as engine:
        images = engine.denoise(states[9], 10)
    np.testing.assert_allclose(images, states[-1], atol=1e-6)


@pytest.mark.parametrize(
    ("cut_ratio", "words"),
    [
        (0.42, r"the export's cut_ratio 0.42 asks for timesteps up to 20, but .* was trained for 19 and below; "
               "valid: cut_ratio above 0, at most 0.4$"),
        (1.0, "asks for timesteps up to 49"),
        (0.0, "cut_ratio 0.0 leaves the device no step, so there is no head"),
        (-0.1, r"plan field cut_ratio is -0.1; valid: a number in \[0, 1\]"),
    ],
)  # fmt: skip
def test_cuts_that_the_head_was_not_trained_for(cut_ratio: float, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        export_head(checkpoint(PLAN), tmp_path / "x.head", ExportSettings(cut_ratio=cut_ratio))
    assert list(tmp_path.iterdir()) == []


def test_the_torch_engine_runs_it_with_the_checkpoint_it_came_from() -> None:
    bundle, options = smaller_head(), EngineOptions(checkpoint=checkpoint(PLAN))
    x_tc, _ = inputs(bundle, 2)
    with open_engine(bundle, "torch", options) as torch_engine, open_engine(bundle) as ort_engine:
        np.testing.assert_allclose(torch_engine.denoise(x_tc), ort_engine.denoise(x_tc), atol=1e-4)
    assert verify_bundle(bundle, "torch", options).passed


def test_the_torch_engine_refuses_a_checkpoint_of_a_smaller_cut() -> None:
    options = EngineOptions(checkpoint=checkpoint(SMALLER))
    words = r"'s cut_ratio 0.4 asks for timesteps up to 19, but .* was trained for 9 and below"
    with pytest.raises(PlanMismatch, match=words), open_engine(default_head(), "torch", options):
        pass


def test_int8_is_calibrated_on_tensors_of_the_smaller_cut(tmp_path: Path) -> None:
    settings = ExportSettings(cut_ratio=0.2, precision="int8-cpu", calibration=calibration(PLAN, 4))
    with pytest.raises(PlanMismatch, match=r"cut_ratio: the head has 0.2, the calibration file has 0.4"):
        export_head(checkpoint(PLAN), tmp_path / "x.head", settings)
    check_calibration("int8-cpu", calibration(SMALLER, 4), smaller_head())


def test_command_line_from_export_to_images(tmp_path: Path) -> None:
    source = checkpoint(levels=1)
    out, tensors, images = tmp_path / "x.head", tmp_path / "x.tc.safetensors", tmp_path / "images"
    result = run_cli("export", source, "--cut-ratio", 0.2, "--out", out)
    assert result.code == 0, result.err
    assert "steps     8, 5 from level 9 by dpm++2m on karras levels" in result.out
    handover = calibration(SMALLER, 2)
    write_handover(tensors, handover)
    assert run_cli("infer", out, tensors, "--out", images).code == 0
    expected = torch_trajectory(read_bundle(out), 8, handover.x_tc, None, 0, source=source)[-1]
    with np.load(images / ARRAY_FILE, allow_pickle=False) as arrays:
        np.testing.assert_allclose(to_uint8(arrays["images"]), to_uint8(expected), atol=1)
    line = refusal("export", source, "--cut-ratio", 0.5, "--out", tmp_path / "y.head")
    assert "was trained for 19 and below; valid: cut_ratio above 0, at most 0.4" in line
    assert "leave out --cut-ratio" in refusal("export", out, "--engine", "tensorrt", "--cut-ratio", 0.2)


@given(
    timesteps=st.integers(2, 60),
    trained=st.floats(0, 1),
    asked=st.floats(0, 1),
    role=st.sampled_from(("server", "client")),
)
def test_a_network_serves_exactly_the_cuts_whose_timesteps_it_saw(
    timesteps: int, trained: float, asked: float, role: str
) -> None:
    plan = SplitPlan((1, 8, 8), timesteps=timesteps, cut_ratio=trained)
    source = Checkpoint(Path("x"), role, plan, NetworkConfig("test", {}), {}, Path("x"), "")
    wanted = plan.with_cut_ratio(asked)
    side = SplitPlan.server_transitions if role == "server" else SplitPlan.client_transitions
    seen, needed = ({t for t, _ in side(p)} for p in (plan, wanted))
    if needed <= seen:
        require_trained_for(source, wanted, "the plan")
    else:
        with pytest.raises(PlanMismatch, match="asks for timesteps"):
            require_trained_for(source, wanted, "the plan")
