"""A stage made ready: base loaded, groups switched on, everything handed to accelerate, data opened."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from segue import loading
from segue.checkpoints import adapters, model_folder
from segue.checkpoints.locate import resolve
from segue.data.base import rng_for
from segue.data.mixture import Mixture
from segue.encoder import MediaEncoder
from segue.errors import ConfigError
from segue.features import FeatureCache, Store
from segue.grounding.model import VisionLanguageModel
from segue.models.protocol import Processor
from segue.train import optim, zero
from segue.train.batch_stream import BatchStream, ShardSpec, mixture_of, parts_of, step_seed
from segue.train.examples import RowMaker
from segue.train.from_scratch import model
from segue.train.from_scratch.objectives import OBJECTIVES
from segue.train.loss_module import LossModule
from segue.train.recipe import Stage, TrainRecipe
from segue.train.stages import TrainableParameters, stored_name, switch_on

if TYPE_CHECKING:
    from accelerate import Accelerator
else:
    # An extra: imported where a run begins.
    Accelerator = Any


BEGINNING = "beginning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a stage starts from: a model by name and the folder it was found in."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """A stage that can begin: `loss_module` and `optimizer` are as accelerate wrapped them."""

    index: int
    stage: Stage
    base: Base
    base_hash: str
    model: VisionLanguageModel
    processor: Processor
    trainable: TrainableParameters
    loss_module: nn.Module
    optimizer: Any
    stream: BatchStream
    make: RowMaker
    mixture: Mixture
    steps: int
    features: FeatureCache | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by its name in a checkpoint."""
        if isinstance(self.loss_module, FSDPModule):
            # a pass without a way back leaves the whole parameters in place of those that the optimizer knows
            self.loss_module.reshard()
        return {stored_name(name): one for name, one in self.model.named_parameters() if one.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        """What was learned so far, whole and on the CPU. All processes must call this."""
        return {name: optim.whole(parameter.detach()).cpu().clone() for name, parameter in self.parameters.items()}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """The optimizer's memory, whole and on the CPU. All processes must call this."""
        names = {parameter: name for name, parameter in self.parameters.items()}
        return (zero if self.is_zero else optim).optimizer_tensors(_bare(self.optimizer), names)

    @property
    def is_zero(self) -> bool:
        """Whether DeepSpeed holds the optimizer."""
        return hasattr(_bare(self.optimizer), "bit16_groups")

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Go back to where a checkpoint was.

        Raises: CheckpointError, if it is of other parameters.
        """
        names = {parameter: name for name, parameter in self.parameters.items()}
        optim.restore_tensors(self.parameters, tensors)
        if self.is_zero:
            zero.renew(self.parameters)
        (zero if self.is_zero else optim).restore_optimizer(_bare(self.optimizer), names, state)


def require_accelerate() -> None:
    """Raises: ConfigError, where accelerate is missing."""
    if find_spec("accelerate") is None:
        raise ConfigError("training needs accelerate; install the extra: pip install 'segue[train]'")


def accelerator(recipe: TrainRecipe, *, device: str) -> Accelerator:
    """How this process takes part: alone, or as `accelerate launch` or torchrun started it.

    Raises: ConfigError, where accelerate is missing, or for a form of DeepSpeed or FSDP that cannot be used.
    """
    require_accelerate()
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        zero.require()
    made = Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if recipe.precision == "bf16" else "no",
        gradient_accumulation_steps=recipe.accumulation,
        # the decoder's heads for IoU and presence learn only where their terms count
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if made.distributed_type.value == "MULTI_CPU":
        _spread_over_cpus(made)
    if made.distributed_type.value == "DEEPSPEED":
        zero.settle(made, recipe)
    if made.distributed_type.value == "FSDP":
        if not made.is_fsdp2:
            raise ConfigError("checkpoints are not written from the first FSDP; say fsdp_version: 2 in its config file")
        # autocast it is, as in one process: what learns stays in float32, and so does the mask decoder
        made.state.fsdp_plugin.mixed_precision_policy = None
    return made


def _spread_over_cpus(made: Accelerator) -> None:
    """On CPUs accelerate drops what its launcher was told, and would copy everything to each process instead."""
    from accelerate.state import PartialState
    from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        made.state.deepspeed_plugins = DeepSpeedPlugin()
        asked = DistributedType.DEEPSPEED
    elif parse_flag_from_env("ACCELERATE_USE_FSDP"):
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        asked = DistributedType.FSDP
    else:
        return
    # the second is written anew from the first whenever somebody asks for it
    PartialState().distributed_type = made.state.distributed_type = asked


def prepare(recipe: TrainRecipe, index: int, base: Base, accelerator: Accelerator) -> StageState:
    """Load, switch on, wrap and open all that a stage needs.

    Raises: SegueError, for whatever of it cannot be used.
    """
    stage = recipe.stages[index]
    if stage.optimizer == "muon" and accelerator.distributed_type.value in ("FSDP", "DEEPSPEED"):
        raise ConfigError(
            f"stage {stage.name!r} asks for muon, which needs whole matrices, and {accelerator.distributed_type.value} "
            "spreads them over processes; say optimizer: adamw, or launch without it"
        )
    loaded = loading.load(base.folder, device=str(accelerator.device), dtype=recipe.precision)
    model, processor = loaded.model, loaded.processor
    if model_folder.change(model.config, image_side=recipe.image_side, chat=recipe.template):
        processor = model_folder.load_processor(adapters.find(base.folder) or base.folder, model.config)
    features = None
    if recipe.cache is not None:
        features = MediaEncoder(model, processor).use_cache(Store(recipe.cache))
    trainable = switch_on(model, stage, processor, seed=step_seed(recipe.seed, index, 0, 0, 2**20))
    if features is not None:
        _check_frozen(model, stage, trainable)
    if recipe.gradient_checkpointing:
        _checkpoint_activations(model.mllm.language_model)
    loss_module: Any = LossModule(
        model,
        weights=stage.losses,
        seg_id=processor.seg_id,
        objective=OBJECTIVES[stage.objective],
        num_masks=recipe.objects,
        num_points=recipe.points,
    )
    loss_module.features = features
    loss_module.train()
    optimizer: Any = optim.optimizer(
        *optim.layer_groups(
            trainable.groups,
            {name: stage.groups[name].rate or stage.rate for name in trainable.groups},
            {name: stage.groups[name].layer_decay for name in trainable.groups},
        ),
        betas=stage.betas,
        weight_decay=stage.weight_decay,
        epsilon=stage.epsilon,
        matrices=_matrices(model) if stage.optimizer == "muon" else frozenset(),
    )
    if accelerator.distributed_type.value == "FSDP":
        _name_layers(loss_module, accelerator.state.fsdp_plugin)
    loss_module, optimizer = accelerator.prepare(loss_module, optimizer)
    register_fsdp_forward_method(loss_module, "evaluate")
    trainable = trainable.renewed(accelerator.unwrap_model(loss_module).model)
    shard = ShardSpec(accelerator.process_index, accelerator.num_processes, recipe.batch, recipe.accumulation)
    make = RowMaker(
        processor=processor,
        side=None if model.grounder is None else model.grounder.side,
        max_tokens=recipe.max_tokens,
        max_tiles=recipe.max_tiles,
        frames=recipe.frames,
        features=features,
    )
    mixture = mixture_of(recipe.data if stage.data is None else stage.data, recipe, recipe.output)
    steps = stage.steps or math.ceil((stage.epochs or 0) * len(mixture) / shard.per_step)
    return StageState(
        index=index,
        stage=stage,
        base=base,
        base_hash=loaded.lineage["model_hash"],
        model=accelerator.unwrap_model(loss_module).model,
        processor=processor,
        trainable=trainable,
        loss_module=loss_module,
        optimizer=optimizer,
        stream=BatchStream(mixture, make, shard),
        make=make,
        mixture=mixture,
        steps=steps,
        features=features,
    )


def _check_frozen(model: VisionLanguageModel, stage: Stage, trainable: TrainableParameters) -> None:
    """Refuse to learn weights that decide what is kept: from the second step on it would be of other weights.

    Raises: ConfigError.
    """
    below = {tensor.data_ptr() for tensor in model.mllm.below("tower").values()}
    learned = [
        name for name, group in trainable.groups.items() if any(one.data_ptr() in below for one in group.values())
    ]
    if learned:
        raise ConfigError(
            f"stage {stage.name!r} trains {', '.join(learned)}, whose features a cache keeps: after one step they "
            "would be those of other weights. Freeze that group, or train without --cache"
        )


def _matrices(model: VisionLanguageModel) -> frozenset[nn.Parameter]:
    """The weights of linear layers that learn, but for the one that scores tokens: its rows are like embeddings."""
    head = model.mllm.language_model.get_output_embeddings()
    layers = [one for one in model.modules() if isinstance(one, nn.Linear) and one is not head]
    return frozenset(cast(nn.Parameter, layer.weight) for layer in layers if layer.weight.requires_grad)


def _name_layers(loss_module: Any, plugin: Any) -> None:
    """Let the language model's layers be what is spread, each by itself: every pass of every process needs them all."""
    known = {type(layer).__name__ for layer in loss_module.model.mllm.language_model.model.layers}
    loss_module._no_split_modules = sorted(known)
    named = set(plugin.transformer_cls_names_to_wrap or known)
    if not named <= known:
        raise ConfigError(
            f"fsdp_transformer_layer_cls_to_wrap is {', '.join(sorted(named))}, but the language model is made of "
            f"{', '.join(sorted(known))}; leave it out, and the right one is taken"
        )


def _checkpoint_activations(language: Any) -> None:
    # transformers renames it on the way to version 6
    is_new = hasattr(language, "activation_checkpointing_enable")
    enable = language.activation_checkpointing_enable if is_new else language.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def first_base(recipe: TrainRecipe) -> Base:
    """The recipe's own base; one from scratch is made in the run folder.

    Raises: CheckpointError, if it cannot be found or written; what reading the texts for its tokenizer raises.
    """
    if recipe.scratch is not None:
        folder = recipe.output / BEGINNING
        if not folder.exists():
            model.write(recipe.scratch, folder, _texts(recipe), seed=recipe.seed)
        return Base(name=str(folder), folder=folder)
    folder = resolve(recipe.model)
    return Base(name=recipe.model, folder=adapters.find(folder) or folder)


def _texts(recipe: TrainRecipe) -> Iterator[str]:
    """Every turn of the first dialogues of all data, headed by who speaks, as the prompt will have it."""
    assert recipe.scratch is not None
    parts = parts_of([source for stage in recipe.stages for source in stage.data or recipe.data])
    for part in parts:
        for row in range(min(len(part.dataset), recipe.scratch.texts // len(parts))):
            for message in part.dataset.get(row, rng_for(recipe.seed, 0, row)).messages:
                yield f"{message.role}\n{message.text}"


def relative_to_checkpoint(base: Path, run: Path) -> str:
    """Where a base lies as a checkpoint of the run says it: relative inside the run, so that runs can be moved."""
    base, run = base.resolve(), run.resolve()
    if not base.is_relative_to(run):
        return str(base)
    return Path(os.path.relpath(base, run / adapters.CHECKPOINTS / "one")).as_posix()


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)
