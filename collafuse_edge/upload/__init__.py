"""What a client uploads: the keyed noise, the shard made with it, and the ledger of what was released."""

from collafuse_edge.upload.make import make_paper_shard, make_shard
from collafuse_edge.upload.release import Uploaded, describe_upload, upload_images

__all__ = ["Uploaded", "describe_upload", "make_paper_shard", "make_shard", "upload_images"]
