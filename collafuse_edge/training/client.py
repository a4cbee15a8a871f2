"""From a site's images to a training task."""

from collafuse_edge.data import ImageSet
from collafuse_edge.training.tasks import ClientTask
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.networks.classes import MAX_CLASSES, read_class_names


def client_task(plan: SplitPlan, data: ImageSet, conditional: bool) -> tuple[ClientTask, int | None]:
    """The task and the head's number of classes (None for an unconditional head).

    Raises:
        InputError: a conditional head was asked for and the data has no labels, more classes than a head can have, or
            names of classes that cannot be kept.
    """
    if not conditional:
        return ClientTask(plan, data.images), None
    if data.labels is None:
        why = f" ({data.why_unlabelled})" if data.why_unlabelled else ""
        raise InputError(f"--conditional needs labels and {data.source} has none{why}; leave --conditional out")
    num_classes = len(data.label_names) if data.label_names else int(data.labels.max()) + 1
    if num_classes > MAX_CLASSES:
        raise InputError(
            f"{data.source} has label {num_classes - 1}, so {num_classes} classes; valid: at most {MAX_CLASSES}: "
            "number them from 0, or give them names"
        )
    if data.class_names is not None:
        read_class_names(list(data.class_names), num_classes)  # before the training, not when it is read again
    return ClientTask(plan, data.images, data.labels, num_classes), num_classes
