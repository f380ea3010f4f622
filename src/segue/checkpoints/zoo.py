"""The known architectures of all families, and which of them a configuration or weights are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache

from segue.errors import ConfigError
from segue.grounding import sam2
from segue.grounding.model import VisionLanguageConfig
from segue.models import FAMILIES
from segue.models.known import KnownModel, Signs
from segue.models.protocol import Family

Shapes = Mapping[str, tuple[int, ...]]

HIERA_L_WIDTH = 144
_SAM2 = r".+\.trunk\.patch_embed\.proj\.weight|.+\.backbone\.patch_embed\.projection\.weight"
_SECOND = r".+\.sam_mask_decoder_modified\.iou_token\.weight|grounder\.language_decoder\.iou_token\.weight"


def known() -> dict[str, tuple[Family, KnownModel]]:
    """Every known architecture by name, in the order of the families; the `tiny` ones are none of the released."""
    return {name: (FAMILIES[family], model) for family in FAMILIES for name, model in FAMILIES[family].known.items()}


def released() -> tuple[str, ...]:
    """The names of those that were released."""
    return tuple(name for name, (_, model) in known().items() if model.repository)


def find(name: str) -> tuple[Family, KnownModel]:
    """The architecture of that name and its family.

    Raises: ConfigError, naming those there are.
    """
    models = known()
    if name not in models:
        raise ConfigError(f"unknown architecture {name!r}; known: {', '.join(models)}")
    return models[name]


def config_of(name: str, *, grounder: bool = True) -> VisionLanguageConfig:
    """The configuration of a known architecture, or of the model that it was made from, without a grounder.

    Raises: ConfigError, for an unknown name.
    """
    family, model = find(name)
    has_grounder = grounder and model.sam2 is not None
    return VisionLanguageConfig(
        family=family.name,
        mllm_config=family.config(**model.config),
        sam2_config=sam2.architecture(model.sam2) if has_grounder else None,
        template=model.template,
        two_decoders=has_grounder and model.two_decoders,
    )


@dataclass(frozen=True, slots=True)
class Sizes:
    """What tells one architecture from another; `None` where a source does not say.

    `mlp` is the width inside the language model's MLPs, `sam2` the width of SAM 2's first stage.
    """

    family: str | None = None
    tower: int | None = None
    tower_layers: int | None = None
    language: str | None = None
    width: int | None = None
    layers: int | None = None
    mlp: int | None = None
    rows: int | None = None
    sam2: int | None = None
    two_decoders: bool | None = None

    @classmethod
    def of_config(cls, config: VisionLanguageConfig) -> Sizes:
        """The sizes of the model that a configuration describes."""
        vision, text, grounder = config.mllm_config.vision_config, config.mllm_config.text_config, config.sam2_config
        return cls(
            family=config.family,
            tower=vision.hidden_size,
            tower_layers=getattr(vision, "num_hidden_layers", None) or vision.depth,
            language=FAMILIES[config.family].signs.languages[text.model_type][0],
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            mlp=text.intermediate_size,
            rows=text.vocab_size,
            sam2=None if grounder is None else grounder.vision_config.backbone_config.hidden_size,
            two_decoders=None if grounder is None else config.two_decoders,
        )

    @classmethod
    def of_shapes(cls, shapes: Shapes) -> Sizes:
        """The sizes that tensor names and shapes betray, in an official or our own layout."""
        found = _signs(shapes)
        if found is None:
            return cls()
        family, signs = found
        embeddings, width = _first(shapes, signs.embeddings), _first(shapes, signs.tower_width)
        languages = (title for title, pattern in signs.languages.values() if _first(shapes, pattern))
        trunk = _first(shapes, _SAM2)
        return cls(
            family=family if width else None,
            tower=_last(width),
            tower_layers=_count(shapes, signs.tower_layer) if width else None,
            language=next(languages, None) if embeddings else None,
            width=_last(embeddings),
            layers=_count(shapes, signs.layer) if embeddings else None,
            mlp=_last(_first(shapes, signs.mlp_out)),
            rows=embeddings[0] if embeddings else None,
            sam2=(trunk or (None,))[0],
            two_decoders=bool(_first(shapes, _SECOND)) if trunk else None,
        )

    def __str__(self) -> str:
        parts = []
        if self.family is not None:
            parts.append(f"{FAMILIES[self.family].signs.tower} {self.tower} wide, {self.tower_layers} deep")
        if self.width is not None:
            parts.append(f"{self.language or 'language model'} {self.width} wide, {self.layers} deep")
        if self.sam2 is not None:
            parts.append("SAM 2 Hiera-L" if self.sam2 == HIERA_L_WIDTH else f"SAM 2 {self.sam2} wide")
        return "; ".join(parts) or "no part of a known model"


def _signs(shapes: Shapes) -> tuple[str, Signs] | None:
    """The family whose tower is there, else the first whose table of tokens is; and how its names go."""
    all_signs = {name: FAMILIES[name].signs for name in FAMILIES}
    for part in ("tower_width", "embeddings"):
        for name, signs in all_signs.items():
            if _first(shapes, getattr(signs, part)):
                return name, signs
    return None


def nearest(sizes: Sizes) -> str | None:
    """The name of the known architecture that is most like these sizes; `None` if they say nothing."""
    distances = {name: _distance(sizes, _sizes(name)) for name in known()}
    name = min(distances, key=lambda known: distances[known])
    return name if math.isfinite(distances[name]) else None


def is_exactly(sizes: Sizes, name: str) -> bool:
    """Whether these are the sizes of a known architecture, as far as they say."""
    return not differing(sizes, _sizes(name))


@cache
def _sizes(name: str) -> Sizes:
    return Sizes.of_config(config_of(name))


def describe(sizes: Sizes) -> str:
    """Sizes in words, with the known architecture that has them, or that is nearest to them."""
    name = nearest(sizes)
    if name is None:
        return str(sizes)
    return f"{name} ({sizes})" if is_exactly(sizes, name) else f"a model like {name} ({sizes})"


def differing(one: Sizes, other: Sizes) -> tuple[str, ...]:
    """The fields in which two architectures differ, as far as both say; the length of a vocabulary does not count."""
    pairs = {entry.name: (getattr(one, entry.name), getattr(other, entry.name)) for entry in fields(Sizes)}
    return tuple(name for name, (a, b) in pairs.items() if name != "rows" and None not in (a, b) and a != b)


def contrast(config: VisionLanguageConfig, shapes: Shapes) -> str:
    """What a configuration describes and what weights are, where these are two architectures; else empty."""
    # an official config.json says nothing of SAM 2
    described, found = replace(Sizes.of_config(config), sam2=None, two_decoders=None), Sizes.of_shapes(shapes)
    if not differing(described, found):
        return ""
    return f"config.json describes {describe(described)}, but the weights are those of {describe(found)}"


def _distance(one: Sizes, other: Sizes) -> float:
    total, is_told = 0.0, False
    for entry in fields(Sizes):
        a, b = getattr(one, entry.name), getattr(other, entry.name)
        if a is None or b is None:
            continue
        is_told = True
        is_size = type(a) is int and type(b) is int and a > 0
        total += abs(math.log(a / b)) if is_size else float(a != b)
    return total if is_told else math.inf


def _first(shapes: Shapes, pattern: str) -> tuple[int, ...] | None:
    return next((shape for name, shape in shapes.items() if re.fullmatch(pattern, name)), None)


def _last(shape: tuple[int, ...] | None) -> int | None:
    return shape[-1] if shape else None


def _count(shapes: Shapes, pattern: str) -> int | None:
    numbers = [int(found[1]) for name in shapes if (found := re.fullmatch(pattern, name))]
    return max(numbers) + 1 if numbers else None
