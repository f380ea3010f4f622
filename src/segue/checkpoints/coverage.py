"""How much of a model another checkpoint decided, component by component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from segue.grounding.model import component_of
from segue.weights.lazy import Spec

TensorStatus = Literal["loaded", "mismatched", "absent"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """One component of a model, and what became of its tensors.

    `loaded`, `mismatched` (there, but of another shape) and `absent` count the model's tensors, `unused` those of the
    other checkpoint that went nowhere. `loaded_numbers` of `numbers` were taken over; of a table of embeddings that may
    be some of the rows.
    """

    component: str
    loaded: int
    mismatched: int
    absent: int
    unused: int
    loaded_numbers: int
    numbers: int

    @property
    def fraction(self) -> float:
        """The share of the component's numbers that was taken over, from 0 to 1."""
        return self.loaded_numbers / self.numbers if self.numbers else 0.0


def coverage(
    specs: Mapping[str, Spec],
    statuses: Mapping[str, TensorStatus],
    parts: Mapping[str, tuple[str, ...]],
    *,
    unused: Iterable[str] = (),
    taken: Mapping[str, int] | None = None,
) -> tuple[Coverage, ...]:
    """What became of a model's tensors, gathered by component, in the order of `parts`.

    `unused` are names of the other checkpoint, as near to ours as they go. `taken` counts the numbers of tensors that
    were taken over in part.
    """
    left = [component_of(name, parts) or "of no known part" for name in unused]
    found = []
    for component in (*parts, "of no known part"):
        names = [name for name in specs if (component_of(name, parts) or "of no known part") == component]
        if not names and component not in left:
            continue
        counts = {
            status: sum(statuses[name] == status for name in names) for status in ("loaded", "mismatched", "absent")
        }
        loaded = sum((taken or {}).get(name, specs[name].numel) for name in names if statuses[name] == "loaded")
        numbers = sum(specs[name].numel for name in names)
        found.append(
            Coverage(component, **counts, unused=left.count(component), loaded_numbers=loaded, numbers=numbers)
        )
    return tuple(found)


def plain(rows: Sequence[Coverage]) -> list[dict[str, Any]]:
    """The same as plain values, for JSON."""
    return [{**asdict(row), "fraction": round(row.fraction, 6)} for row in rows]
