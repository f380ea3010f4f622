"""DeepSpeed's ZeRO, stages 1 and 2: the optimizer's memory, and the gradients, spread over processes.

Parameters stay whole in every process. Checkpoints are the same as ever: what is spread is put together under the
parameters' names, and nothing of DeepSpeed's own (pickled) checkpoints is written or read.

Source: ZeRO (arXiv 1910.02054).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segue.errors import ConfigError
from segue.train.recipe import TrainRecipe

MOMENTS = ("exp_avg", "exp_avg_sq")


def require() -> None:
    """See that DeepSpeed is there, when a launcher asks for it.

    Raises: ConfigError, if not.
    """
    from accelerate.utils import is_deepspeed_available

    if not is_deepspeed_available():
        raise ConfigError("the launcher's config file asks for DeepSpeed, which is missing; pip install deepspeed")


def settle(accelerator: Any, recipe: TrainRecipe) -> None:
    """Tell DeepSpeed what the recipe says; precision is autocast's, as without it.

    Raises: ConfigError, for a stage that spreads parameters too, or keeps memory elsewhere.
    """
    plugin = accelerator.state.deepspeed_plugin
    zero = plugin.deepspeed_config["zero_optimization"]
    elsewhere = [name for name in ("offload_optimizer", "offload_param") if _device(zero, name) != "none"]
    if zero["stage"] not in (1, 2) or elsewhere:
        raise ConfigError(
            f"DeepSpeed is asked for ZeRO stage {zero['stage']}{' with ' + ', '.join(elsewhere) if elsewhere else ''}; "
            "expected stage 1 or 2 without offloading. To spread the weights too, use recipes/accelerate/fsdp2.yaml"
        )
    per_process = recipe.batch * recipe.accumulation
    plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": recipe.batch,
        "gradient_accumulation_steps": recipe.accumulation,
        "train_batch_size": per_process * accelerator.num_processes,
        "gradient_clipping": recipe.clip,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
    }
    accelerator.native_amp = recipe.precision == "bf16"


def optimizer_tensors(optimizer: Any, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """An optimizer's memory as `segue.train.optim.optimizer_tensors` has it. All processes must call this."""
    from deepspeed.utils import safe_get_full_optimizer_state

    found: dict[str, Tensor] = {}
    for parameters, share in _groups(optimizer):
        memory = optimizer.optimizer.state.get(share)
        if not memory:  # before the first step
            continue
        _link(optimizer, parameters, share)
        for parameter in parameters:
            for moment in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, moment)
                found[f"{names[parameter]}|{moment}"] = value.detach().cpu().clone()
            found[f"{names[parameter]}|step"] = memory["step"].detach().cpu().clone()
    return found


def renew(parameters: Mapping[str, nn.Parameter]) -> None:
    """Let the optimizer's own copies of its share of the parameters be what these are now."""
    from deepspeed.utils import safe_set_full_fp32_param

    for parameter in parameters.values():
        safe_set_full_fp32_param(parameter, parameter.detach().clone())


def restore_optimizer(optimizer: Any, names: Mapping[nn.Parameter, str], tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the memory that `optimizer_tensors` took from another."""
    from deepspeed.utils import safe_set_full_optimizer_state

    for parameters, share in _groups(optimizer):
        step = tensors.get(f"{names[parameters[0]]}|step")
        if step is None:
            continue
        fresh = {moment: torch.zeros_like(share) for moment in MOMENTS}
        optimizer.optimizer.state[share] = {"step": step.clone(), **fresh}
        _link(optimizer, parameters, share)
        for parameter in parameters:
            for moment in MOMENTS:
                value = tensors[f"{names[parameter]}|{moment}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, moment)


def _groups(optimizer: Any) -> Iterator[tuple[list[nn.Parameter], Tensor]]:
    """The parameters of each group, and this process's share of them, in one piece."""
    for parameters, group in zip(optimizer.bit16_groups, optimizer.optimizer.param_groups, strict=True):
        (share,) = group["params"]
        yield parameters, share


def _link(optimizer: Any, parameters: Sequence[nn.Parameter], share: Tensor) -> None:
    """Let parameters find what is remembered of them; by itself DeepSpeed does so for the first group alone."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    lazy_init_hp_params_optimizer_state(parameters, share, optimizer.optimizer.state)


def _device(zero: Mapping[str, Any], name: str) -> str:
    return str((zero.get(name) or {}).get("device", "none"))
