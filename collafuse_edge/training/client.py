"""From a site's images to a training task."""

from collafuse_edge.data import ImageSet
from collafuse_edge.training.tasks import ClientTask
from collafuse_runtimes.errors import InputError
from collafuse_runtimes.plan import SplitPlan


def client_task(plan: SplitPlan, data: ImageSet, conditional: bool) -> tuple[ClientTask, int | None]:
    """The task and the head's number of classes (None for an unconditional head).

    Raises:
        InputError: a conditional head was asked for and the data has no labels.
    """
    if not conditional:
        return ClientTask(plan, data.images), None
    if data.labels is None:
        raise InputError(f"--conditional needs labels and {data.source} has none; leave --conditional out")
    num_classes = len(data.label_names) if data.label_names else int(data.labels.max()) + 1
    return ClientTask(plan, data.images, data.labels, num_classes), num_classes
