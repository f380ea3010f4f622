"""Cost on paper: against numbers made by hand, against what runs counted, and the page that shows it."""

import json
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from segue.bench import estimate
from segue.bench.estimate import ACCELERATORS, Accelerator, Arithmetic, Cost, arithmetic
from segue.bench.limits import flops_of

ROOT = Path(__file__).parents[1]
MEASURED = (ROOT / "benchmarks" / "results" / "bench_sa2va_1b_cpu.txt").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
COUNTS_AGREE, SECONDS_AGREE = 0.05, 1.5  # the margins that docs/scaling.md states


@pytest.fixture(scope="module")
def one_billion() -> Arithmetic:
    return arithmetic("Sa2VA-1B")


@pytest.fixture
def run_estimate():
    """Runs `segue estimate ...` in this process."""
    from segue.cli.main import application

    return lambda *arguments: CliRunner().invoke(application(), ["estimate", *arguments], catch_exceptions=False)


def test_one_tile_through_the_tower_by_hand(one_billion):
    # 24 layers of 12 d^2 numbers, a kernel of 14 x 14 x 3, 1025 patches 1024 wide
    numbers = 24 * 12 * 1024**2 + 3 * 14 * 14 * 1024
    assert one_billion.tower(1025, 1) == 2 * numbers * 1025 + 4 * 24 * 1024 * 1025**2
    assert one_billion.tower(5 * 1025, 5) == 5 * one_billion.tower(1025, 1)


def test_reading_tokens_by_hand(one_billion):
    # queries and output 896 x 896, keys and values 896 x 128, three matrices of 896 x 4864; 14 heads of 64
    layer = 2 * 896 * 896 + 2 * 896 * 128 + 3 * 896 * 4864
    head = one_billion.text.vocab_size * 896
    assert one_billion.read(100) == 2 * 24 * layer * 100 + 4 * 24 * 896 * 100 * 100 + 2 * head
    assert one_billion.read(1, past=99) == 2 * 24 * layer + 4 * 24 * 896 * 100 + 2 * head


def test_time_is_operations_and_bytes_over_limits():
    device = Accelerator(products=100.0, bandwidth=10.0, memory=1.0)
    assert (Cost(flops=200, read=10) * 3).seconds(device, 0.5) == 3 * (2 + 1) / 0.5


def test_learning_by_hand(one_billion):
    full = estimate.training(one_billion, 1, is_lora=False)
    frozen = ("mllm.vision_tower.", "grounder.sam2.vision_encoder.", "grounder.sam2.memory", "grounder.sam2.prompt")
    lora = estimate.training(one_billion, 1, is_lora=True)
    assert full.memory(8) == (full.weights + 12 * full.learned) / 8 + full.working
    assert full.learned > 0.6e9 > 0.03e9 > lora.learned > 24 * 32 * (2 * 2 * 896)
    assert not any(place.startswith(frozen) for place in estimate._learned(one_billion, is_lora=False))
    assert full.cost.flops - lora.cost.flops == pytest.approx(one_billion.read(full.cost.tokens), rel=0.05)


def test_the_seven_sets_weigh_what_the_cache_page_says():
    page = (ROOT / "docs" / "cache.md").read_text(encoding="utf-8")
    sets = estimate.cached_sets(128)
    clip = int(re.search(r"^\| tower \| `lossless` \| ([\d,]+) \|", page, re.M)[1].replace(",", ""))
    assert sum(one.videos for one in sets) <= 5000 and sets[0].lossless == 900 * clip
    assert sets[0].flops / 900 / 128 == pytest.approx(0.382e12 * 23 / 24, rel=0.01)  # counted once with all 24 layers


def counted(stage: str, objects: str = "") -> float:
    """Operations that the recorded run counted: seconds x share of the limit x the limit."""
    line = rf"^{re.escape(stage)} +{objects} +\d+ \w+ +([\d.]+) .* (\d+)% of products$"
    found = re.search(line, MEASURED, re.M)
    return float(found[1]) * float(found[2]) / 100 * 0.978e12


def test_counts_agree_with_what_a_run_counted(one_billion):
    assert "0.978 TFLOP/s of a matrix product" in MEASURED
    pairs = {
        "vision encode": one_billion.see(5 * 1025, 5, 5 * 256),
        "prefill": one_billion.read(1342),
        "SAM 2 encode": one_billion.encode_frame,
    }
    for stage, paper in pairs.items():
        assert paper == pytest.approx(counted(stage), rel=COUNTS_AGREE), stage
    for objects in (1, 4, 16):
        paper = one_billion.follow(objects, shown=5)
        assert paper == pytest.approx(counted("follow, late in a video", str(objects)), rel=COUNTS_AGREE)
    assert f"weights: {one_billion.weights / 1e9:.3f} GB" in MEASURED


def test_seconds_agree_with_what_a_run_took(one_billion):
    machine = Accelerator(0.978e12, 13e9, 0.0)
    image = one_billion.see(5 * 1025, 5, 1280) + one_billion.read(1342) + one_billion.encode_frame
    clip = image + 4 * one_billion.encode_frame + 5 * one_billion.remember(1)
    for name, flops in (("image", image), ("clip", clip)):
        took = float(re.search(rf"^{name}, start to end +1 +\d \w+ +([\d.]+)", MEASURED, re.M)[1])
        paper = Cost(flops=flops + one_billion.decode_masks(1)).seconds(machine, 0.4)
        assert 1 / SECONDS_AGREE < paper / took < SECONDS_AGREE, name


@pytest.mark.slow
def test_sam2_in_real_size_is_counted_alike(one_billion):
    from segue.grounding.sam2 import LanguageSam2

    with torch.device("meta"):
        encoder = LanguageSam2(one_billion.config.sam2_config).sam2.vision_encoder
        job = partial(encoder, torch.empty(1, 3, 1024, 1024))
        assert one_billion.encode_frame == pytest.approx(flops_of(job), rel=0.02)


@pytest.mark.parametrize("name", ["Sa2VA-26B", "Sa2VA-Qwen2_5-VL-7B", "Sa2VA-Qwen3-VL-4B", "Sa2VA-i-1B"])
def test_every_family_has_its_arithmetic(name):
    model = arithmetic(name)
    image, clip = estimate.images(model, 3), estimate.clip(model, 24, 3)
    assert image.flops > model.encode_frame and clip.flops > 24 * model.encode_frame
    assert image.read == clip.read > 0 and clip.stored == 24 * image.stored


@pytest.mark.parametrize(
    "line", [words for words in re.findall(r"^\$ segue (estimate .*)$", PAGE, re.M)], ids=lambda line: line
)
def test_the_page_shows_what_the_command_prints(run_estimate, line):
    run = run_estimate(*shlex.split(line)[1:])
    shown = PAGE.split(f"$ segue {line}\n")[1].split("```")[0]
    assert run.exit_code == 0
    assert [row.rstrip() for row in run.stdout.splitlines() if row.strip()] == shown.rstrip().splitlines()


def test_json_has_the_numbers_and_memory_says_what_fits(run_estimate):
    run = run_estimate("finetune", "--full", "--models", "Sa2VA-8B", "--gpus", "1,8", "--json")
    (row,) = json.loads(run.stdout)
    assert row["fits"] == {"1": False, "8": True} and row["hours"]["1"] == 8 * row["hours"]["8"]
    assert row["memory"]["1"] > ACCELERATORS["h100"].memory


def test_a_number_of_devices_given_twice_is_one_and_few_tokens_are_not_none(run_estimate):
    run = run_estimate("images", "--models", "Sa2VA-1B", "--gpus", "1,1", "--count", "1")
    heads, row = (line.split("  ") for line in run.stdout.splitlines() if "hours on" in line or "Sa2VA-1B" in line)
    assert [word.strip() for word in heads if word] == ["model", "tokens", "EFLOP", "hours on 1", "masks"]
    assert "3.5e-06 B" in [word.strip() for word in row]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("images", "--models", "Sa2VA-3B"), "unknown architecture"),
        (("images", "--models", "Qwen-VL"), "has no grounder"),
        (("cache", "--gpu", "b200"), "unknown device 'b200'"),
        (("images", "--models", "LongVA-7B-DPO"), "has no grounder"),
        (("images", "--models", ","), "names none"),
        (("images", "--models", "tiny", "--gpus", "1,0"), "is not a list of numbers"),
        (("images", "--models", "tiny", "--gpus", "9" * 5000), "is not a list of numbers"),
        (("images", "--count", "9" * 400), "less than or equal to"),
        (("videos", "--models", "tiny", "--fps", "inf"), "less than or equal to"),
        (("cache", "--share", "nan"), "less than or equal to"),
        (("cache", "--frames", "9" * 400), "less than or equal to"),
    ],
)
def test_what_cannot_be_estimated_gets_one_line(run_estimate, arguments, text):
    run = run_estimate(*arguments)
    assert run.exit_code == 2 and text in run.stderr
