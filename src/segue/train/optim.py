"""Learning rates and the optimizer. A rate is a function of the step, so a resumed run needs no scheduler's state."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segue.errors import CheckpointError
from segue.loading import multiplies_bf16

WARMUP_START = 1e-5
Method = Literal["adamw", "muon"]
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_MOMENTUM = ("momentum_buffer",)
_KEPT = 0.95  # of Muon's momentum, at each step
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def rate_factor(
    step: int, steps: int, *, warmup: float, schedule: Literal["cosine", "constant"], least: float = 0.0
) -> float:
    """What the peak rate is multiplied by at a step, counted from 0, of a stage of `steps` steps.

    It rises linearly from 1e-5 over the first `warmup` of the steps; then it stays, or falls along a cosine to `least`,
    which the step after the last would reach.
    """
    rising = int(warmup * steps)
    if step < rising:
        return WARMUP_START + (1 - WARMUP_START) * step / rising
    if schedule == "constant":
        return 1.0
    fallen = 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
    return least + (1 - least) * fallen


def layer_groups(
    groups: Mapping[str, Mapping[str, nn.Parameter]], rates: Mapping[str, float], decays: Mapping[str, float]
) -> tuple[dict[str, list[nn.Parameter]], dict[str, float]]:
    """Groups of parameters by name and their rates, with a group for each layer where rates fall with depth.

    Layer number l of n, counted from 1, has the group's rate times decay^(n + 1 - l); what lies before all layers
    counts as number 0.
    """
    found: dict[str, list[nn.Parameter]] = {}
    peaks: dict[str, float] = {}
    for name, parameters in groups.items():
        depths = {place: _layer(place) for place in parameters}
        last = max(depths.values(), default=0)
        for place, parameter in parameters.items():
            part = name if decays[name] == 1 else f"{name}.{depths[place]}"
            found.setdefault(part, []).append(parameter)
            peaks[part] = rates[name] * decays[name] ** (last + 1 - depths[place] if part != name else 0)
    return found, peaks


def _layer(place: str) -> int:
    """Which layer a parameter is of, from 1; 0 before them."""
    number = re.search(r"\.(?:layers?|blocks?)\.(\d+)\.", place)
    return int(number[1]) + 1 if number else 0


class Muon(torch.optim.AdamW):
    """AdamW, but for the parameters `matrices`, whose steps are made orthogonal; scaled so that the same rates do.

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the scale is that of
    "Muon is scalable for LLM training" (arXiv 2502.16982).
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, matrices: Set[nn.Parameter], **options: Any):
        self.matrices = matrices
        super().__init__(groups, **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all parameters that have a gradient."""
        for group in self.param_groups:
            chosen = [one for one in group["params"] if one in self.matrices and one.grad is not None]
            for one in chosen:
                self._turn(one, group["lr"], group["weight_decay"])
                one.grad = None
        return super().step(closure)

    def _turn(self, matrix: nn.Parameter, rate: float, decay: float) -> None:
        # torch.optim.Muon works in bfloat16 alone, which takes twenty times as long where a CPU emulates it
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - _KEPT)
        matrix.mul_(1 - rate * decay)
        matrix.add_(orthogonal(gradient.lerp(momentum, _KEPT)), alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """About the nearest matrix with orthogonal rows or columns: its singular values lie between 0.7 and 1.2.

    Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), Newton-Schulz iteration.
    """
    is_narrow = matrix.device.type != "cpu" or multiplies_bf16()
    values = matrix.to(torch.bfloat16 if is_narrow else torch.float32)
    values = values.T if len(matrix) > matrix.shape[1] else values
    values = values / values.norm().clamp(min=1e-7)
    linear, cubic, quintic = _NEWTON_SCHULZ
    for _ in range(5):
        square = values @ values.T
        values = torch.addmm(
            values, torch.addmm(square, square, square, beta=cubic, alpha=quintic), values, beta=linear
        )
    return values.T if len(matrix) > matrix.shape[1] else values


def optimizer(
    groups: Mapping[str, Sequence[nn.Parameter]],
    rates: Mapping[str, float],
    *,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float = 1e-8,
    matrices: Set[nn.Parameter] = frozenset(),
) -> torch.optim.AdamW:
    """AdamW over named groups, or with `matrices`, Muon for these; each group remembers its peak rate under `peak`, and
    weight decay is on all parameters.
    """
    parts = [
        {"params": list(parameters), "lr": rates[name], "peak": rates[name], "name": name}
        for name, parameters in groups.items()
    ]
    if matrices:
        return Muon(parts, matrices=matrices, betas=betas, eps=epsilon, weight_decay=weight_decay)
    return torch.optim.AdamW(parts, betas=betas, eps=epsilon, weight_decay=weight_decay)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Give every group its peak rate times a factor; returns the rates by group name."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """An optimizer's memory as named tensors: "<parameter>|exp_avg", "|exp_avg_sq", "|step", or "|momentum_buffer" of
    Muon's; whole, on the CPU.

    Parameters that no gradient has reached have none.
    """
    assert all(parameter in names for parameter in optimizer.state), "the optimizer knows other parameters"
    return {
        f"{name}|{moment}": whole(optimizer.state[parameter][moment]).cpu().clone()
        for parameter, name in names.items()
        if parameter in optimizer.state
        for moment in _moments(optimizer, parameter)
    }


def _moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> tuple[str, ...]:
    return _MOMENTUM if isinstance(optimizer, Muon) and parameter in optimizer.matrices else _MOMENTS


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimizer the memory that `optimizer_tensors` took from another.

    Raises: CheckpointError, if it belongs to other parameters.
    """
    known = {f"{name}|{moment}" for one, name in names.items() for moment in _moments(optimizer, one)}
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise CheckpointError(
            f"the optimizer's state is of other parameters ({len(unknown)} of them, the first: {unknown[0]}); "
            "resume with the recipe that the run was started with"
        )
    for parameter, name in names.items():
        moments = _moments(optimizer, parameter)
        state = {moment: tensors[f"{name}|{moment}"] for moment in moments if f"{name}|{moment}" in tensors}
        if not state:  # no gradient has reached it yet
            continue
        if len(state) < len(moments) or state[moments[0]].shape != parameter.shape:
            raise CheckpointError(
                f"the optimizer's state of {name} is incomplete or of another shape; take an older one"
            )
        optimizer.state[parameter] = {
            moment: value.clone() if moment == "step" else placed_like(parameter, value)
            for moment, value in state.items()
        }


def whole(tensor: Tensor) -> Tensor:
    """A tensor as one piece, also where it is spread over processes (FSDP); then all of them must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, where it is not spread over processes."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def placed_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A tensor on a parameter's device and, where that is spread over processes, spread the same way."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value.clone()
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


@torch.no_grad()
def restore_tensors(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Give parameters the values that a checkpoint has under their names.

    Raises: CheckpointError, if names or shapes differ.
    """
    if set(parameters) != set(tensors):
        wrong = sorted(set(parameters) ^ set(tensors))
        raise CheckpointError(
            f"the checkpoint holds other parameters ({len(wrong)} differ, the first: {wrong[0]}); "
            "resume with the recipe that the run was started with"
        )
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise CheckpointError(f"{name} is {list(tensors[name].shape)}, the model has {list(parameter.shape)}")
        parameter.copy_(placed_like(parameter, tensors[name]))
