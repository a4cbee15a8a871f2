"""A head bundle in words."""

from collafuse_runtimes.diffusion.fitted import describe_fit
from collafuse_runtimes.files.bundle import HeadBundle
from collafuse_runtimes.networks.classes import shown


def describe_bundle(bundle: HeadBundle) -> list[str]:
    """What a bundle is, in lines for people."""
    network, shape = bundle.network, "x".join(map(str, bundle.plan.image_shape))
    counts = ", ".join(str(r.steps) for r in bundle.row_ranges)
    condition = "" if bundle.num_classes is None else f", {bundle.num_classes} classes"
    names = [] if bundle.class_names is None else [f"classes   {shown(bundle.class_names)} (names from your data)"]
    return [
        f"head      {bundle.path}: {network.preset}, {network.parameters:,} parameters{condition}",
        f"work      {network.flops_per_step / 1e6:,.0f} MFLOP per step and image of {shape}",
        f"steps     {counts} from level {bundle.plan.handover_level} by {bundle.sampler.text}",
        *([] if bundle.fitted is None else describe_fit(bundle.fitted.report)),
        *([] if bundle.distilled is None else [f"distilled {bundle.distilled.text}"]),
        f"graph     {bundle.precision}, opset {bundle.opset}, {len(bundle.model) / 1e6:.1f} MB",
        *names,
    ]
