"""Where and how exactly a model runs: quantised, within its memory, and refused where it cannot."""

import pytest
import torch
from torch import nn

from segue import loading
from segue.errors import ConfigError, LimitError
from segue.geometry.masks import iou
from segue.models.fused import FusedLinear
from segue.models.quantised import Int8Linear
from segue.options import Options

ASKED = Options(prefill="It is [SEG].", keep_logits=True)


def kinds(module):
    return {type(part) for part in module.modules() if isinstance(part, nn.Linear | Int8Linear)}


def test_eight_bits_are_in_language_model_and_tower_and_nowhere_else(official_folder):
    model = loading.load(official_folder, device="cpu", quantize="int8").model
    assert kinds(model.mllm.language_model) == kinds(model.mllm.vision_tower) == {Int8Linear}
    assert kinds(model.grounder) == {nn.Linear, FusedLinear}
    assert kinds(model.seg_projector) == kinds(model.mllm.projector) == {nn.Linear}


def test_a_layer_is_packed_as_soon_as_it_is_read_so_that_only_one_is_held_in_full(official_folder, monkeypatch):
    seen = []
    quantise = loading.quantised.quantise

    def watched(model, names, bits, device):
        full = sum(type(part) is nn.Linear for part in model.mllm.language_model.modules())
        seen.append((len(names), full))
        quantise(model, names, bits, device)

    monkeypatch.setattr(loading.quantised, "quantise", watched)
    loading.load(official_folder, device="cpu", quantize="int8")
    counts = [full for _, full in seen]
    assert {number for number, _ in seen[:-1]} == {1} and seen[-1] == (0, 0) and counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_answers_in_eight_bits_are_near_the_exact_ones(official_folder, picture, dtype):
    exact, packed = (loading.load(official_folder, device="cpu", dtype=dtype, quantize=how) for how in (None, "int8"))
    one, other = (engine.ask(picture(), "Where?", options=ASKED).regions[0].masks for engine in (exact, packed))
    assert iou(one.dense(0), other.dense(0)) > 0.9
    assert packed.lineage["dtype"] == f"{exact.lineage['dtype']}+int8"
    assert packed.lineage["model_hash"] == exact.lineage["model_hash"]


def test_answers_in_four_bits_are_answers(official_folder, picture):
    pytest.importorskip("bitsandbytes", reason="needs the extra `quant`")
    packed = loading.load(official_folder, device="cpu", dtype="fp32", quantize="int4")
    answer = packed.ask(picture(), "Where?", options=ASKED)
    assert answer.regions[0].masks.dense(0).shape == (90, 120) and packed.lineage["dtype"] == "float32+int4"
    assert type(packed.model.mllm.language_model.lm_head) is nn.Linear


def test_a_quantised_model_is_not_saved(official_folder, tmp_path):
    with pytest.raises(ConfigError, match="--quantize or --offload cannot be saved; load it without"):
        loading.load(official_folder, device="cpu", quantize="int8").save(tmp_path / "out")


def test_layers_cannot_be_packed_and_elsewhere_at_once(official_folder, monkeypatch):
    monkeypatch.setattr(loading.offloading, "check", lambda device: None)
    with pytest.raises(ConfigError, match="do not go together"):
        loading.load(official_folder, device="cpu", quantize="int8", offload=True)


def test_offload_without_a_card_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="--offload keeps layers in main memory for a small GPU"):
        loading.load(tmp_path / "nothing", device="cpu", offload=True)


class TestMemory:
    @pytest.fixture
    def leave(self, monkeypatch):
        """Leaves so many bytes free."""
        return lambda free: monkeypatch.setattr(loading, "available_memory", lambda device: free)

    def test_a_model_that_cannot_fit_is_refused_with_what_would(self, official_folder, leave):
        need = loading.footprint.placed_memory(shapes(official_folder), 2, "internvl")
        config = loading.model_folder.read_layout(official_folder).config
        leave(need + loading.footprint.working_memory(config, 2, loading.footprint.SMALLEST))
        with pytest.raises(LimitError, match=r"needs about .* GB on cpu .* what would fit: --dtype bf16 \("):
            loading.load(official_folder, device="cpu", dtype="fp32")
        assert loading.load(official_folder, device="cpu", dtype="bf16").model.dtype == torch.bfloat16

    def test_where_nothing_fits_a_smaller_model_is_advised(self, official_folder, leave):
        leave(1000)
        with pytest.raises(LimitError, match="take a smaller model"):
            loading.load(official_folder, device="cpu")

    def test_it_is_loaded_all_the_same_if_asked(self, official_folder, leave):
        leave(1000)
        assert loading.load(official_folder, device="cpu", check_memory=False).model is not None

    def test_where_only_small_questions_fit_a_warning_says_so(self, official_folder, leave, caplog):
        places, config = shapes(official_folder), loading.model_folder.read_layout(official_folder).config
        weights = loading.footprint.placed_memory(places, 4, "internvl")
        leave(weights + loading.footprint.working_memory(config, 4, loading.footprint.LARGEST_IMAGE) - 1)
        loading.load(official_folder, device="cpu", dtype="fp32")
        assert "ask with fewer (--max-tiles)" in caplog.text

    def test_what_this_machine_has_is_known_or_unknown_but_never_nothing(self):
        free = loading.available_memory("cpu")
        assert free is None or free > 0


def shapes(folder):
    return loading.model_folder.plan(folder)[1]


@pytest.mark.parametrize(
    ("device", "parameters", "abilities", "expected"),
    [
        ("cpu", loading.LARGE, {"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ("cpu", loading.LARGE, {"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ("cpu", loading.LARGE - 1, {"amx_bf16": True, "avx512_bf16": True}, torch.float32),
        ("cpu", loading.LARGE, {"avx512_f": True}, torch.float32),
        ("mps", loading.LARGE, {"amx_bf16": True}, torch.float32),
    ],
)
def test_auto_is_bfloat16_for_large_models_where_a_cpu_multiplies_it(
    monkeypatch, device, parameters, abilities, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    assert loading.pick_dtype("auto", device, parameters) == expected
    assert loading.pick_dtype("fp32", device, parameters) == torch.float32


@pytest.mark.parametrize(("least", "expected"), [(1, torch.bfloat16), (10**12, torch.float32)])
def test_the_size_that_counts_is_read_from_the_folder(official_folder, monkeypatch, least, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setattr(loading, "LARGE", least)
    assert loading.load(official_folder, device="cpu").model.dtype == expected


@pytest.mark.parametrize("dtype", ["fp16", "float16", torch.float16])
def test_precision_and_device_are_taken_as_pytorch_has_them_too(official_folder, dtype):
    assert loading.load(official_folder, device=torch.device("cpu"), dtype=dtype).model.dtype == torch.float16


def test_what_a_container_keeps_of_files_is_free(tmp_path, monkeypatch):
    if loading.available_memory("cpu") is None:
        pytest.skip("this system does not say how much memory is free")
    monkeypatch.setattr(loading, "CGROUP", tmp_path)
    stat = "anon 600\nactive_file 300\ninactive_file 4000\n"
    for name, text in {"max": "5000\n", "current": "4900\n", "stat": stat}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    assert loading.available_memory("cpu") == 4400
    (tmp_path / "memory.max").write_text("max\n")
    assert loading.available_memory("cpu") > 4400


@pytest.mark.parametrize("device", ["meta", "vulkan", "cpu:1", "nonsense"])
def test_a_device_that_no_model_runs_on_is_refused(device):
    with pytest.raises(ConfigError, match=device):
        loading.pick_device(device)


def test_a_card_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert loading.pick_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="'cuda:2' is not available"):
        loading.pick_device("cuda:2")
