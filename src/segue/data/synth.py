"""The former name of `segue.synth`. Scripts that import from here go on, and are told the new name."""

import warnings
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """A public name of `segue.synth`.

    Raises: AttributeError, if it has none of this name.
    """
    if name.startswith("_"):
        raise AttributeError(name)
    found = getattr(import_module("segue.synth"), name)
    warnings.warn(f"segue.data.synth is segue.synth now: import {name} from there", FutureWarning, stacklevel=2)
    return found
