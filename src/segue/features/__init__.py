"""Features of frozen encoders, kept: in what form, under which key, in which files.

`Store` is the folder, `Identity` what features are made by, `FeatureCache` both together for one model. A medium is
found again by its content, weights by theirs; nothing is known by its name.
"""

from segue.features.cache import FeatureCache, Features, Usage
from segue.features.formats import FORMATS, Loss
from segue.features.keys import Identity, Key, digest, fingerprint
from segue.features.sources import Sources
from segue.features.store import Found, Place, Store

__all__ = [
    "FORMATS",
    "FeatureCache",
    "Features",
    "Found",
    "Identity",
    "Key",
    "Loss",
    "Place",
    "Sources",
    "Store",
    "Usage",
    "digest",
    "fingerprint",
]
