"""Reading images of every supported kind into one array, and drawing phantoms."""

from collafuse_edge.data.image_set import ImageSet, Selection
from collafuse_edge.data.loading import load_images

__all__ = ["ImageSet", "Selection", "load_images"]
