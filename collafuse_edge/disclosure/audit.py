"""What a published network or its images tell of those it was trained on: membership, and copies."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collafuse_benchmarks.disclosure.membership import Copies, Membership, PredictEpsilon, copies, membership
from collafuse_benchmarks.measure.record import Record
from collafuse_edge.data import ImageSet
from collafuse_edge.evaluation.evaluate import read_generated
from collafuse_edge.upload.similarity import near_duplicate_groups
from collafuse_runtimes.diffusion.noise import Float32Array
from collafuse_runtimes.engines.torch_engine import predict_function
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.files.checkpoint import Checkpoint, load_network, read_checkpoint

LEVELS_TRIED = 12


@dataclass(frozen=True)
class AuditReport(Record):
    """What was found of a network, and what was asked.

    Attributes:
        network: the checkpoint's name, ``role`` and weights.
        members, others: where the images came from; of each group of near-duplicates one is taken, and none of a
            group that has members is taken as other.
        left_out: images that are near-duplicates of another taken one.
        copies: of generated images; None where none were given, and ``copies_reason`` says so.
    """

    network: str
    role: str
    weights_sha256: str
    members: str
    member_count: int
    others: str
    other_count: int
    left_out: int
    seed: int
    membership: Membership
    copies: Copies | None
    copies_reason: str | None


def audit(
    checkpoint: Path, members: ImageSet, others: ImageSet, generated: Path | None = None, seed: int = 0
) -> AuditReport:
    """Ask a network which images it knows, and look for copies among what it made.

    Args:
        checkpoint: server or head, without classes.
        members: images it was trained on, at its plan's size.
        others: images of the same kind that it was not trained on.
        generated: a folder of `infer`, its images.npz or a hand-over file.

    Raises:
        InputError: a class-conditional network, or too few images that are not near-duplicates.
        ArtefactError: checkpoint or images are missing or damaged.
        EngineUnavailable: torch or the [evidence] extra is not installed.
    """
    network = read_checkpoint(checkpoint)
    if network.network.num_classes is not None:
        raise InputError(f"{checkpoint} is class-conditional; valid: a server, or a head without classes")
    inside, outside = _apart(members.images, others.images)
    found = membership(_sees(network), inside, outside, _levels(network), seed)
    made = None if generated is None else copies(read_generated(generated).images, inside, outside, seed)
    return AuditReport(
        network=checkpoint.name,
        role=network.role,
        weights_sha256=network.weights_sha256,
        members=members.source,
        member_count=len(inside),
        others=others.source,
        other_count=len(outside),
        left_out=len(members) + len(others) - len(inside) - len(outside),
        seed=seed,
        membership=found,
        copies=made,
        copies_reason="no generated images were given: --generated" if made is None else None,
    )


def describe_audit(report: AuditReport) -> list[str]:
    """Lines for people, the answer first."""
    found, made = report.membership, report.copies
    verdict = "members can be told from others" if found.low > 0.5 else "members cannot be told from others"
    lines = [
        f"{verdict}: AUC {found.auc:.3f} ({found.low:.3f} to {found.high:.3f}, chance 0.5), {found.tpr:.1%} of "
        f"the members at 1 % false alarms ({found.tpr_low:.1%} to {found.tpr_high:.1%})",
    ]
    if made is not None:
        copied = "nearer to what it was trained on than chance has it" if made.low > 0.5 else "no copies are seen"
        lines.append(
            f"{copied}: {made.nearer_to_trained:.1%} of {made.generated} images are nearer to one trained on than to a "
            f"held-out one ({made.low:.1%} to {made.high:.1%}, chance 50 %), median ratio of distances {made.ratio:.3f}"
        )
    else:
        lines.append(f"copies    not measured: {report.copies_reason}")
    return [
        *lines,
        f"network   {report.network} ({report.role}), asked at level {found.level}",
        f"images    {report.member_count} of {report.members} against {report.other_count} of {report.others}; "
        f"{report.left_out} near-duplicates left out",
    ]


def _apart(members: Float32Array, others: Float32Array) -> tuple[Float32Array, Float32Array]:
    """One image of each group; a group that has members has no others."""
    both = np.concatenate([members, others])
    firsts = np.unique(near_duplicate_groups(both))
    return both[firsts[firsts < len(members)]], both[firsts[firsts >= len(members)]]


def _levels(network: Checkpoint) -> list[int]:
    """Some of those it was trained for."""
    plan = network.plan
    first, last = (plan.cut, plan.timesteps - 1) if network.role == "server" else (0, plan.cut - 1)
    return sorted({int(level) for level in np.linspace(first, last, LEVELS_TRIED)})


def _sees(network: Checkpoint) -> PredictEpsilon:
    """epsilon, also of a network that predicts v: epsilon = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t (Salimans & Ho
    2022, appendix D)."""
    predict, plan = predict_function(load_network(network)), network.plan

    def epsilon(x: Float32Array, t: int) -> Float32Array:
        out, a = predict(x, t), plan.alpha_bar_at(t)
        if plan.prediction_at(t) == "epsilon":
            return out
        mixed: Float32Array = (math.sqrt(a) * out + math.sqrt(1 - a) * x).astype(np.float32)
        return mixed

    return epsilon
