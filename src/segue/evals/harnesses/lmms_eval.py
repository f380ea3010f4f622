"""Segue as a model of lmms-eval (0.7 or newer), which finds it by itself once both are installed.

    python -m lmms_eval --model segue --model_args pretrained=demo --tasks mme --batch_size 1

`docs/adapters.md` says how. Tasks that have the model write are answered; those that rate given answers by likelihood
or talk over several rounds are refused. Imported by lmms-eval alone, through the entry point of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from accelerate import PartialState
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

from segue.errors import ConfigError
from segue.evals.harnesses.harness_adapter import HarnessAdapter, HarnessRequest, options_from
from segue.options import Options

log = logging.getLogger(__name__)


class Segue(lmms):
    """A model of Segue's behind the interface of lmms-eval.

    `pretrained` is what `segue.load` takes; `frames`, `max_tiles` and `policy` are as in `segue.Options`. Features of
    media are kept in the folder `cache_dir` and taken from there, unless `enable_cache` is false. Several processes, as
    `accelerate launch` starts them, share the questions.
    """

    def __init__(  # noqa: PLR0913 - the names are lmms-eval's, and are given on its command line
        self,
        pretrained: str = "demo",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        cache_dir: str | None = None,
        enable_cache: bool | None = None,
        **options: Any,
    ):
        super().__init__()
        state = PartialState()
        self._rank, self._world_size = state.process_index, state.num_processes
        if self._world_size > 1 or device is None:
            device = str(state.device)
        self._options = _options(options)
        self._batch = _batch_size(batch_size)
        if max_batch_size is not None:
            log.warning("max_batch_size %s means nothing here; the size of a batch is batch_size", max_batch_size)
        self._adapter = HarnessAdapter.load(
            str(pretrained),
            device=device,
            dtype=dtype,
            cache_dir=cache_dir,
            enable_cache=enable_cache,
        )
        self.device = state.device

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Answers to the questions, in their order.

        Raises: DataError, MediaError and LimitError, for what cannot be asked; an answer is never left out.
        """
        asked = [self._request(request) for request in requests]
        answers = self._adapter.answer_all(asked, batch=self._batch)
        said = list(tqdm(answers, total=len(asked), desc="segue", disable=self._rank != 0))
        for request, text in zip(requests, said, strict=True):
            self.cache_hook.add_partial("generate_until", request.args[:2], text)
        return said

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused.

        Raises: ConfigError.
        """
        raise ConfigError(
            f"the task rates {len(requests)} given answers by their likelihood, which Segue does not tell; "
            "choose a task whose output_type is generate_until"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Refused.

        Raises: ConfigError.
        """
        raise ConfigError(
            f"the task asks {len(requests)} questions over several rounds, which the adapter does not; choose a task "
            "whose output_type is generate_until"
        )

    def _request(self, request: Instance) -> HarnessRequest:
        text, given, visuals, number, task, split = request.args
        options, until = options_from(given, self._options)
        shown = visuals(self.task_dict[task][split][number])
        return HarnessRequest(text, tuple(_flat(shown)), options, until)


def manifest() -> ModelManifest:
    """What lmms-eval is told: the name of the model, and where its class is."""
    return ModelManifest(model_id="segue", simple_class_path=f"{__name__}.Segue")


def _options(given: dict[str, Any]) -> Options:
    """Options from `--model_args`.

    Raises: ConfigError, for a name that is none.
    """
    known = ("frames", "max_tiles", "policy", "seed")
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(
            f"unknown model_args {', '.join(unknown)}; expected pretrained, device, dtype, cache_dir, enable_cache, "
            f"{', '.join(known)}"
        )
    return Options(keep_masks=False, **given)


def _batch_size(given: int | str | None) -> int:
    if given is None:
        return 1
    if not str(given).isdecimal() or int(given) < 1:
        raise ConfigError(f"batch_size is {given!r}; expected a number of questions, 1 or more")
    return int(given)


def _flat(shown: Any) -> Iterator[object]:
    """What a task shows, one by one: it may give nothing, a thing, or lists of things."""
    if isinstance(shown, list | tuple):
        for one in shown:
            yield from _flat(one)
    elif shown is not None:
        yield shown
