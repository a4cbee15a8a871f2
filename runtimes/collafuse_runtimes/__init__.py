"""What a device needs: the split, the samplers, the file formats and the engines. numpy and the standard library."""

from collafuse_runtimes.device.telemetry import switch_off

__version__ = "0.1.0"
FORMAT_VERSION = 1
"""Version of every file format written by this release (docs/formats.md)."""

switch_off()
