"""What every test stands on: a tokenizer of bytes, tiny random models, and pictures that are made, not read."""

import dataclasses
import gc
import inspect
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import get_args, get_type_hints

# Tiny models spend longer on waking threads than on numbers. Set before torch is first imported, inherited by
# the processes that tests start, and left alone where somebody chose otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Replays of recordings use several all the same; those that wait give way to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jaxtyping
import numpy as np
import pytest
from beartype import BeartypeConf, beartype

CHECKED = beartype(conf=BeartypeConf(violation_type=TypeError))  # an error of the kind that jaxtyping raises
NOT_PLAIN = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def _has_arrays(hint) -> bool:
    """Whether a type says the shape of an array, however deep inside."""
    parts = hint if isinstance(hint, list) else get_args(hint)
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_has_arrays, parts))


def _sparing(jaxtyped):
    """jaxtyping's decorator, but a function without shapes goes to the type checker alone, one within another to none.

    jaxtyping checks arguments twice and notes the shapes of each call, which is most of the price of the checks. For a
    function that another one makes anew at each call the check would be compiled anew as well.
    """

    def decorate(fn=None, *, typechecker):
        if fn is None:
            return partial(decorate, typechecker=typechecker)
        if inspect.isclass(fn):
            made = vars(fn).get("__init__")
            if dataclasses.is_dataclass(fn) and made is not None and not hasattr(made, "__wrapped__"):
                fn.__init__ = decorate(made, typechecker=typechecker)
            return fn
        if "<locals>" in fn.__qualname__:
            return fn
        try:
            hints = get_type_hints(fn, include_extras=True)
        except (NameError, AttributeError, TypeError):  # what only mypy understands; jaxtyping takes it for Any
            return jaxtyped(fn, typechecker=typechecker)
        if any(kind(fn) for kind in NOT_PLAIN) or any(map(_has_arrays, hints.values())):
            return jaxtyped(fn, typechecker=typechecker)
        fn.__annotations__ = hints
        return CHECKED(fn) if hints else fn

    return decorate


jaxtyping.jaxtyped = _sparing(jaxtyping.jaxtyped)


def pytest_collection_finish():
    """What importing everything has left behind is never garbage: no search for garbage goes through it again."""
    gc.collect()
    gc.freeze()


SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("[SEG]", "<p>", "</p>", "<vp>", "</vp>"),
]
# As in Qwen's vocabulary, a stop string that is ordinary text merges with a full stop before and a line break after it.
MERGES = [(".", "<"), ("<", "|"), ("|", ">"), ("|>", "Ċ"), ("e", "n"), ("en", "d")]
SAM2_SIZES = {
    "embed_dim": 8,
    "num_heads": 1,
    "stages": [1, 1, 1, 1],
    "global_att_blocks": [],
    "d_model": 32,
    "mem_dim": 8,
    "mem_attn_layers": 1,
    "mem_attn_ffn": 48,
    "fuser_layers": 1,
    "image_size": 256,
    "mask_decoder_mlp_dim": 48,
    "mask_decoder_heads": 4,
    "iou_head_hidden_dim": 32,
}


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory):
    """What is remembered of files (`segue.facts`) stays with this run and the processes that it starts."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    # pytest-xdist says how wide a terminal is that its workers do not have
    os.environ.pop("COLUMNS", None)
    if set(sys.modules) & {"warm", "kept"}:
        import warm

        warm.start()


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Bytes, six merges, and the special tokens of a Sa2VA checkpoint."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in MERGES)]
    backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(alphabet)}, MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def longva_folder(tmp_path_factory, byte_tokenizer):
    """The recorded LongVA in the official layout, with a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("longva")
    for name in ("config.json", "model.safetensors", "vision_config.json"):
        shutil.copy(Path(__file__).parent / "golden" / "longva" / name, folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_config(byte_tokenizer):
    """Builds a configuration: tiles of 112 pixels and 4 x 4 tokens, SAM 2 on 256; `text` is for the language model."""
    from segue.grounding import sam2
    from segue.grounding.model import VisionLanguageConfig

    def make(*, two_decoders=False, template="qwen_chat", **text):
        vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        vision |= {"image_size": 112, "patch_size": 14, "use_mean_pooling": True, "attention_bias": True}
        language = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
        language |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(byte_tokenizer)}
        return VisionLanguageConfig(
            mllm_config={"vision_config": vision, "text_config": language | text, "tile_side": 112},
            sam2_config=sam2.architecture(SAM2_SIZES),
            template=template,
            two_decoders=two_decoders,
        )

    return make


@pytest.fixture(scope="session")
def randomise():
    """Fills a module, its random encoding of places too, so that nothing is zero, one or equal to its neighbour."""
    import torch

    def fill(module, seed=0):
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                wide = parameter.ndim > 1
                noise = torch.randn(parameter.shape, generator=draws) * (
                    1.5 * parameter[0].numel() ** -0.5 if wide else 0.1
                )
                parameter.copy_(noise if wide else parameter + noise)
            places = [buffer for name, buffer in module.named_buffers() if name.endswith("positional_embedding")]
            for buffer in places:
                buffer.copy_(torch.randn(buffer.shape, generator=draws.manual_seed(seed)))
        return module

    return fill


@pytest.fixture(scope="session")
def make_engine(tiny_config, randomise, byte_tokenizer, tmp_path_factory):
    """Builds an engine around a tiny random model."""
    import torch

    from segue.engine import Engine
    from segue.grounding.model import build

    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer.save_pretrained(folder)

    def make(seed=0, **options):
        config = tiny_config(**options)
        model = randomise(build(config, dtype=torch.float32, device="cpu", fill=True), seed)
        with torch.no_grad():  # else one memory outshines all others, and no test sees what is read of the rest
            model.grounder.sam2.memory_encoder.projection.weight.mul_(0.05)
        return Engine(model, model.family.processor(folder, config.mllm_config, config.template), {"model": "tiny"})

    return make


@pytest.fixture(scope="session")
def engine(make_engine):
    """Sa2VA's layout: one mask decoder for everything. Do not change its weights but through `teach`."""
    return make_engine()


@pytest.fixture(scope="session")
def engine_i(make_engine):
    """Sa2VA-i's layout: a language decoder beside the original one."""
    return make_engine(two_decoders=True)


@pytest.fixture(scope="session")
def official_folder(tmp_path_factory):
    """A checkpoint in the official layout with random weights, which answers every question with one object."""
    from segue.checkpoints.random_weights import random_checkpoint

    return random_checkpoint(tmp_path_factory.mktemp("official") / "tiny")


@pytest.fixture
def teach():
    """Makes a model say given replies to given dialogues, by solving its output head for the states on the way.

    The head is as before when the test is over.
    """
    from dataclasses import replace

    import torch

    from segue.prepare import collate, prepare

    before = []

    def solve(engine, dialogues, replies, frames="first:5"):
        mllm, states, ids = engine.model.mllm, [], []
        for messages, reply in zip(dialogues, replies, strict=True):
            example = prepare(messages, engine.processor, frames=frames)
            # not as a prefill, in which the end of a turn would be text
            said = torch.tensor(engine.processor.tokenizer.encode(reply, add_special_tokens=False))
            whole = torch.cat([example.ids, said])
            example = replace(example, ids=whole, labels=torch.full_like(whole, -100))
            batch = collate([example], engine.processor)
            hidden = mllm.forward(batch)[1][0]
            states.append(hidden[example.answer_start - 1 : -1])
            ids.append(example.ids[example.answer_start :])
        head = mllm.language_model.lm_head.weight
        before.append((head, head.detach().clone()))
        wanted = torch.nn.functional.one_hot(torch.cat(ids), len(head)).float() * 10
        head.copy_(torch.linalg.lstsq(torch.cat(states), wanted, driver="gelsd").solution.T)

    with torch.no_grad():
        yield solve
        for head, weight in reversed(before):
            head.copy_(weight)


@pytest.fixture(scope="session")
def picture():
    """Draws an RGB image of a height and width: gradients and a square whose place depends on the seed."""

    def draw(height=90, width=120, seed=0):
        rows, columns = np.mgrid[:height, :width]
        image = np.stack([rows * 2, columns * 2, rows + columns], axis=-1).astype(np.uint8)
        top, left = (7 * seed) % (height // 2), (11 * seed) % (width // 2)
        image[top : top + height // 3, left : left + width // 3] = (200, 30 * (seed % 8), 90)
        return image

    return draw


@pytest.fixture(scope="session")
def clip(picture):
    """Draws a video of some frames in which the square moves."""
    return lambda count=8, height=60, width=80: np.stack([picture(height, width, seed) for seed in range(count)])


@pytest.fixture
def force_presence():
    """Makes a mask decoder judge every object visible or not, by a logit; as before when the test is over."""
    import torch

    before = []

    def force(decoder, value):
        for parameter in decoder.pred_obj_score_head.proj_out.parameters():
            before.append((parameter, parameter.detach().clone()))
            parameter.fill_(0.0 if parameter.ndim > 1 else value)

    with torch.no_grad():
        yield force
        for parameter, value in reversed(before):
            parameter.copy_(value)
