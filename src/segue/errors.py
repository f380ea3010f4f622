"""The errors that Segue raises on purpose.

Every message says what happened, the value met, what was expected and what to do. The command line prints a
`SegueError` as one line and exits with code 2; any other exception is a bug of ours.
"""


class SegueError(Exception):
    """Something a user can act on; the base of all errors below."""


class ConfigError(SegueError):
    """An option, recipe or model configuration is unknown, contradictory or out of range."""


class DataError(SegueError):
    """A message, prompt, annotation or result file does not have the content it must have."""


class MediaError(SegueError):
    """A file cannot be found, opened, decoded or written."""


class CheckpointError(SegueError):
    """A model folder is incomplete, has tensors too many, or tensors of another shape."""


class LimitError(SegueError):
    """An input is larger than a stated limit allows; raised before the work starts."""
