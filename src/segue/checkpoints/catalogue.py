"""The released checkpoints with what each needs: `catalogue.json`, which was counted on models without memory.

Reading it takes no PyTorch; counting builds every model, which takes seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from segue.checkpoints.released import RELEASES, Release

FRAMES, OBJECTS = 1000, 16  # of a video that is longer than any family is shown of it


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A released checkpoint: how many numbers and tensors its official files hold, and what they need in bytes.

    `weights` go by precision; int8 and int4 are with all else in bf16. `image` and `video` are estimates in bf16 of
    what a question needs besides about an image at its largest, and about a video with 16 objects of which the language
    model is shown as many frames as its family is.
    """

    name: str
    repository: str
    release: Release
    parameters: int
    tensors: int
    policy: str
    weights: Mapping[str, int]
    image: int
    video: int


def catalogue() -> list[CatalogueEntry]:
    """All of them, in the order of the zoo."""
    text = resources.files("segue.checkpoints").joinpath("catalogue.json").read_text(encoding="utf-8")
    return [CatalogueEntry(release=RELEASES[figures["name"]], **figures) for figures in json.loads(text)]


def counted(name: str) -> CatalogueEntry:
    """A checkpoint by its name in the zoo, counted anew.

    Raises: ConfigError, for an unknown name.
    """
    from segue import weights
    from segue.checkpoints import footprint, zoo
    from segue.checkpoints.model_folder import key_table
    from segue.grounding.model import expected
    from segue.media.sampling import choose
    from segue.models import FAMILIES
    from segue.models.quantised import BITS

    config = zoo.config_of(name)
    places = expected(config)
    official = weights.upstream_shapes(places, key_table(config))
    half = footprint.SIZES["bf16"]
    shown = len(choose(FAMILIES[config.family].video_frames, FRAMES))
    exact = {precision: footprint.weight_memory(places, size) for precision, size in footprint.SIZES.items()}
    packed = {bits: footprint.placed_memory(places, half, config.family, quantize=bits) for bits in BITS}
    return CatalogueEntry(
        name,
        zoo.find(name)[1].repository,
        RELEASES[name],
        parameters=sum(map(math.prod, official.values())),
        tensors=len(official),
        policy="none" if config.sam2_config is None else "consistent" if config.two_decoders else "upstream",
        weights=exact | packed,
        image=footprint.working_memory(config, half),
        video=footprint.working_memory(config, half, footprint.Work(frames=shown, objects=OBJECTS)),
    )
