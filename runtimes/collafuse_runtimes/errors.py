"""The exception tree. Libraries raise these; only the command line turns them into exit codes."""


class CollafuseError(Exception):
    """Base of every error a user can meet; the message is one line: bad value, what is valid, next step."""

    exit_code = 2


class InputError(CollafuseError):
    """An argument or option is unusable."""


class ArtefactError(InputError):
    """A file is missing, truncated, tampered with, of another format or version, or cannot be written."""


class PlanMismatch(InputError):
    """Two artefacts were made for different split plans."""


class EngineUnavailable(InputError):
    """The engine asked for is unknown or cannot run here."""


class NoGpu(EngineUnavailable):
    """There is no CUDA here at all: no library, no driver or no GPU. A driver that is there and fails is not meant."""


class SensorLost(CollafuseError):
    """A power or energy sensor is gone for good."""


class CheckFailed(CollafuseError):
    """A check ran to its end and its answer is no (parity, verification)."""

    exit_code = 1
