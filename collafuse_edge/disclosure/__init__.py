"""What an upload of a site's images would disclose, found out on the site's own machine before anything leaves it."""

from collafuse_edge.disclosure.run import disclose
from collafuse_edge.disclosure.settings import DisclosureSettings

__all__ = ["DisclosureSettings", "disclose"]
