"""What a language layer of Qwen-VL costs in its real size beside the library's Qwen2 layer: CPU seconds, in turns.

    python benchmarks/qwen_vl_layer.py [--tokens 64] [--repeats 20]

One of its thirty-two layers in float32 with random weights on one thread: a prompt of so many tokens, and one token
more after it. What a layer is given beside states (angles, masks) is computed each time, as in use. Both read the same
tensors, so that memory is no difference; and they take turns as ours, theirs, theirs, ours. The ratio is the median
over pairs measured one behind the other, which share what else the machine does; the quickest of each are told beside.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from statistics import quantiles
from time import process_time

import torch
import transformers
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from segue.models.qwen_vl.known import KNOWN
from segue.models.qwen_vl.language import QwenForCausalLM, stretched

FEW = {"num_hidden_layers": 1, "vocab_size": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    config = Qwen2Config(**KNOWN["Qwen-VL"].config["text_config"] | FEW)
    ours, theirs = QwenForCausalLM(config).eval(), Qwen2ForCausalLM(config).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    count = sum(tensor.numel() for tensor in ours.model.layers.parameters())
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, one thread")
    print(f"a layer of {count:,} numbers, {settings.tokens} tokens, {settings.repeats} repeats in turns; CPU seconds")
    states = torch.randn(1, settings.tokens + 1, config.hidden_size)
    with torch.no_grad():
        models = {"ours": ours, "theirs": theirs}
        steps = {name: (reading(model, states), decoding(model, states)) for name, model in models.items()}
        # a token takes a fraction of a prompt's time, so it is measured more often
        for number, (what, repeats) in enumerate({"prompt": settings.repeats, "token": 8 * settings.repeats}.items()):
            took: dict[str, list[float]] = {"ours": [], "theirs": []}
            for repeat in range(repeats + 1):
                for name in sorted(steps, reverse=bool(repeat % 2)):
                    began = process_time()
                    steps[name][number]()
                    took[name].append(process_time() - began)
            mine, other = (took[name][1:] for name in ("ours", "theirs"))
            low, middle, high = quantiles((one / two for one, two in zip(mine, other, strict=True)), n=4)
            print(
                f"{what:8} ratio {middle:.3f}, half of the pairs in [{low:.3f}, {high:.3f}]  "
                f"quickest: ours {min(mine):.4f}, Qwen2's {min(other):.4f}"
            )
        difference = (steps["ours"][0]() - steps["theirs"][0]()).abs().max()
        print(f"largest difference of the states: {float(difference):.1e}")


def reading(model: torch.nn.Module, states: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A prompt read at once; the last token is left for `decoding`."""
    prompt = states[:, :-1]
    return lambda: run(model, prompt, torch.arange(prompt.shape[1])[None], None)


def decoding(model: torch.nn.Module, states: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The last token after the others, whose keys and values are kept."""
    length = states.shape[1] - 1
    cache = DynamicCache()
    run(model, states[:, :-1], torch.arange(length)[None], cache)

    def one() -> torch.Tensor:
        found = run(model, states[:, -1:], torch.tensor([[length]]), cache)
        cache.crop(-1)
        return found

    return one


def run(
    model: torch.nn.Module, states: torch.Tensor, positions: torch.Tensor, cache: DynamicCache | None
) -> torch.Tensor:
    """States after the layer and the last norm."""
    if isinstance(model, QwenForCausalLM):
        positions = stretched(positions, model.config.max_position_embeddings)
    found: torch.Tensor = model.model(
        inputs_embeds=states, position_ids=positions, past_key_values=cache, use_cache=cache is not None
    ).last_hidden_state
    return found


if __name__ == "__main__":
    main()
