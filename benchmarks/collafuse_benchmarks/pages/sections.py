"""What the pages of all reports share: the subject, the machine, and whether the run came to its end."""

from collections.abc import Mapping, Sequence

from collafuse_benchmarks.measure.record import Facts
from collafuse_benchmarks.measure.subject import OutputCheck, Subject
from collafuse_benchmarks.measure.summary import Summary
from collafuse_benchmarks.pages.document import NOT_MEASURED, Block, Heading, Paragraph, Table, figure
from collafuse_benchmarks.pages.folder import Stamp

BROKEN_OFF = "This measurement was broken off. The figures below are of the samples taken until then."


def opening(stamp: Stamp, what: str, *, complete: bool) -> tuple[Block, ...]:
    """What was measured, when, and a warning where the run is not whole."""
    measured = f"Measured {stamp.created} by collafuse-edge {stamp.collafuse_edge}."
    first: tuple[Block, ...] = (Paragraph(f"{what} {measured}"),)
    return first if complete else (*first, Paragraph(BROKEN_OFF))


def subject_line(subject: Subject) -> str:
    """The head in one sentence."""
    network, plan = subject.network, subject.plan
    shape = "x".join(map(str, plan.image_shape))
    return (
        f"Head {subject.bundle} ({network.preset}, {network.parameters / 1e6:.2f} M parameters, "
        f"{network.flops_per_step / 1e9:.3f} GFLOP a step, {subject.precision}), images {shape}, T = "
        f"{plan.timesteps}, c = {plan.cut_ratio:g}: {subject.steps} steps on the device."
    )


def interval_cell(summary: Summary) -> str:
    """Where the median of another run is expected."""
    if summary.interval is None:
        return "too few samples"
    low, high = summary.interval
    return f"{figure(low, 4)} to {figure(high, 4)}"


def cv_cell(summary: Summary) -> str:
    """The spread, and a word where the machine was not steady."""
    cv = NOT_MEASURED if summary.cv is None else f"{summary.cv:.1%}"
    return cv + (", unsteady" if summary.is_steady is False else "")


def machine_section(before: Facts, after: Facts | None, changed: Sequence[str]) -> tuple[Block, ...]:
    """The machine's state, in a table of what is known; what is not is named."""
    known, unknown = flatten(before)
    rows = tuple((name, text) for name, text in known)
    blocks: list[Block] = [Heading("Machine"), Table(("fact", "before the measurement"), rows)]
    if unknown:
        blocks.append(Paragraph(f"Unknown, because this machine does not say: {', '.join(unknown)}."))
    if after is None:
        blocks.append(Paragraph("Its state after the measurement was not read."))
    else:
        blocks.append(Paragraph(f"During the measurement: {'; '.join(changed) or 'no change that could be seen'}."))
    return tuple(blocks)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        inner = sorted(value.items(), key=lambda item: (item[0] != "name", item))
        return " ".join(f"{key} {_text(known)}" for key, known in inner if known is not None)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def flatten(state: Facts, prefix: str = "") -> tuple[list[tuple[str, str]], list[str]]:
    """([(name, text)], names without a value); nested objects become "outer inner"; by name.

    An object's ``reasons`` say by key why a value is missing, and stand in its place.
    """
    known: list[tuple[str, str]] = []
    unknown: list[str] = []
    reasons = state.get("reasons")
    given = {**state, **reasons, "reasons": {}} if isinstance(reasons, Mapping) else state
    for key, value in sorted((key, value) for key, value in given.items() if key != "reasons"):
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping) and value:
            inner = flatten(value, f"{name} ")
            known += inner[0]
            unknown += inner[1]
        elif value is None or value in ({}, [], ()):
            unknown.append(name)
        else:
            known.append((name, ", ".join(map(_text, value)) if isinstance(value, list | tuple) else _text(value)))
    return known, unknown


def verdict(check: OutputCheck | None) -> str:
    """What is added to an answer about its output."""
    if check is None:
        return "; the output was not checked"
    return "; the output is right" if check.passed else "; the output IS WRONG, so this means nothing"


def output_section(check: OutputCheck | None) -> list[Block]:
    """Whether what was timed was right."""
    if check is None:
        return [Heading("Output"), Paragraph("The output was not checked: the measurement did not get there.")]
    distances = [r.worst.max_abs for r in check.verify.ranges if r.worst.max_abs is not None]
    verdict = "is right" if check.passed else "IS WRONG, so the times above mean nothing"
    differ = {True: "different batches give different images", False: "different batches gave the same images",
              None: "there was one batch only"}[check.batches_differ]  # fmt: skip
    return [
        Heading("Output"),
        Paragraph(
            f"What was timed {verdict}: golden trajectories within {figure(max(distances, default=None))} of the torch "
            f"network at any step, the same batch twice within {figure(check.repeat_max_abs)}, {differ}."
        ),
    ]
