"""--verbose: what the logger "collafuse" says, on stderr. Never tensors, secrets, or names of private images."""

import sys


def speak(verbose: bool) -> None:
    """Show what the libraries log while the command runs, or nothing."""
    import logging

    from collafuse_runtimes.text import one_line

    class OneLine(logging.Formatter):
        """Names from files cannot command the terminal."""

        def format(self, record: logging.LogRecord) -> str:
            return f"verbose   {one_line(super().format(record))}"

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logger = logging.getLogger("collafuse")
    logger.handlers = [handler] if verbose else []
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logger.propagate = not verbose
