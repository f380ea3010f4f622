import json

import pytest
import torch
from typer.testing import CliRunner

from segue.bench import limits
from segue.bench import stages as bench
from segue.bench.limits import flops_of, measured, read_per_token
from segue.bench.report import BenchPlan, BenchReport, Encodes, MachineLimits, Ratio, StageTiming
from segue.bench.stages import counting, late_memory, measure, random_engine
from segue.errors import ConfigError
from segue.grounding.following import decode_prompts, encode
from segue.grounding.tracking import VideoMemory, conditioning, step

ONCE = ("vision encode", "prefill", "decode", "SAM 2 encode")
FOR_EACH = ("mask decode", "follow, late in a video", "encode and follow", "image, start to end", "clip, start to end")


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """Copies and products as small as the models."""
    monkeypatch.setattr(limits, "COPIED", {"cpu": 1 << 16})
    monkeypatch.setattr(limits, "SIDE", {"cpu": 32})


@pytest.fixture(autouse=True)
def no_gradients():
    """Shape checks hide from torch which functions are generators, and `no_grad` leaves those alone."""
    with torch.no_grad():
        yield


@pytest.fixture
def report():
    """Of stages of one and of five objects; everything else stands for something."""

    def make(*stages: StageTiming, plan: BenchPlan = BenchPlan(objects=(1, 5))) -> BenchReport:  # noqa: B008  frozen
        kept = {"clock": "CPU seconds", "encodes": (), "weight_bytes": 8, "peak_bytes": None}
        kept["limits"] = MachineLimits(bandwidth=100.0, products=50.0)
        return BenchReport(model={"model": "x"}, machine={"threads": 1}, plan=plan, stages=stages, **kept)

    return make


@pytest.mark.parametrize(
    "wrong", [{"objects": ()}, {"objects": (0, 5)}, {"objects": (5, 5)}, {"frames": 0}, {"repeats": 0}]
)
def test_a_plan_that_measures_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match="cannot be measured|at least one of each"):
        BenchPlan(**wrong)


def test_a_ratio_compares_the_quickest_times_and_tells_the_spread_of_neighbours(report):
    one, five = StageTiming("x", 1, 1, "frame", (2.0, 4.0)), StageTiming("x", 5, 1, "frame", (6.0, 3.0))
    other = StageTiming("encode", None, 1, "frame", (1.0, 1.0))
    assert report(other, one, five).ratios == (Ratio("x", 5, 1, value=1.5, lowest=0.75, highest=3.0),)


def test_ratios_are_against_the_first_number_of_objects(report):
    stages = [StageTiming("x", objects, 1, "frame", (float(objects),)) for objects in (16, 4, 1)]
    ratios = report(*stages, plan=BenchPlan(objects=(16, 4, 1))).ratios
    assert [(ratio.objects, ratio.base, ratio.value) for ratio in ratios] == [(4, 16, 0.25), (1, 16, 0.0625)]


def test_a_report_is_json(report):
    found = report(StageTiming("x", 1, 2, "tile", (1.0,)), StageTiming("x", 5, 2, "tile", (2.0,)))
    written = json.loads(json.dumps(found.as_json()))
    uncounted = {"flops": None, "bytes": None, "share": None}
    first = {"name": "x", "objects": 1, "count": 2, "unit": "tile", "seconds": [1.0]}
    assert written["stages"][0] == first | uncounted
    assert [ratio["value"] for ratio in written["ratios"]] == [2.0]


def test_a_share_is_work_per_second_against_the_limit_that_bounds_it(report):
    encoding = StageTiming("encode", None, 1, "frame", (4.0, 2.0), flops=20.0)
    reading = StageTiming("decode", None, 1, "token", (2.0,), bytes=150.0)
    found = report(encoding, reading, StageTiming("other", None, 1, "frame", (1.0,)))
    assert [found.share(stage) for stage in found.stages] == [20 / 2 / 50, 150 / 2 / 100, None]


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 5])
def test_operations_are_counted_in_products_convolutions_and_attention(rows):
    layer, kernel = torch.nn.Linear(4, 6), torch.nn.Conv2d(2, 3, 1)
    heads = torch.randn(2, 3, rows, 8)
    assert flops_of(lambda: layer(torch.ones(rows, 4))) == 2 * rows * 4 * 6
    assert flops_of(lambda: kernel(torch.ones(1, 2, rows, rows))) == 2 * rows * rows * 2 * 3
    attend = torch.nn.functional.scaled_dot_product_attention
    assert flops_of(lambda: attend(heads, heads, heads)) == 2 * 2 * 2 * 3 * rows * rows * 8


@torch.no_grad()
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_queries_that_share_keys_count_as_if_each_had_its_own(device):
    queries, keys = (torch.randn(1, heads, 16, 8, device=device) for heads in (6, 2))
    attend = torch.nn.functional.scaled_dot_product_attention
    assert flops_of(lambda: attend(queries, keys, keys, enable_gqa=True)) == 2 * 2 * 6 * 16 * 16 * 8


@pytest.mark.parametrize(
    ("kernel", "rest"),
    [("flash", (0.0, False, False)), ("efficient", (None, False)), ("cudnn", (None, False))],
)
def test_the_kernels_of_a_gpu_are_counted_by_the_same_rule(kernel, rest):
    queries, keys = (torch.empty(1, heads, 16, 8, device="meta", dtype=torch.float16) for heads in (6, 2))
    attend = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}_attention")
    assert attend in limits.ATTENTIONS
    assert flops_of(lambda: attend(queries, keys, keys, *rest)) == 2 * 2 * 6 * 16 * 16 * 8


def test_reading_a_token_needs_every_weight_but_one_row_of_the_embeddings(engine):
    language_model = engine.model.mllm.language_model
    rows, width = language_model.get_input_embeddings().weight.shape
    assert read_per_token(language_model) == 4 * (language_model.num_parameters() - (rows - 1) * width)


def test_limits_are_measured():
    found = measured(torch.device("cpu"), torch.float32)
    assert 0 < found.bandwidth < 1e13
    assert 0 < found.products < 1e15


def test_counting_counts_rows_and_only_inside_the_block():
    module = torch.nn.Identity()
    with counting(module) as rows:
        module(torch.zeros(3, 2))
        module(torch.zeros(1, 2))
    module(torch.zeros(7, 2))
    assert rows == [3, 1]


@pytest.mark.parametrize("name", ["engine", "engine_i"])
def test_a_measured_model_gives_every_stage_and_encodes_each_frame_once(request, monkeypatch, name):
    monkeypatch.setattr(bench, "IMAGE_SIZE", (80, 80))
    told = []
    found = measure(request.getfixturevalue(name), BenchPlan(objects=(1, 2), frames=2, repeats=2), told.append)
    assert [stage.name for stage in found.stages] == [*ONCE, *(name for name in FOR_EACH for _ in range(2))]
    assert len(told) == len(found.stages)
    assert {len(stage.seconds) for stage in found.stages if stage.name != "clip, start to end"} == {2}
    media = (("image", 1), ("video", 2))
    assert found.encodes == tuple(Encodes(kind, objects, count, count) for kind, count in media for objects in (1, 2))


@pytest.mark.parametrize(
    ("architecture", "count", "unit"),
    [("tiny", 11, "tile"), ("tiny-qwen25-vl", 1, "image"), ("tiny-qwen3-vl", 1, "image")],
)
def test_every_family_is_measured_by_what_its_tower_sees(monkeypatch, architecture, count, unit):
    monkeypatch.setattr(bench, "IMAGE_SIZE", (112, 224))
    monkeypatch.setattr(bench, "_mask_stages", lambda *_: ())
    monkeypatch.setattr(bench, "_ask", lambda *_: None)
    found = measure(
        random_engine(architecture, device="cpu", dtype="fp32"), BenchPlan(frames=1, repeats=1), lambda _: None
    )
    assert (found.stages[0].name, found.stages[0].unit) == ("vision encode", unit)
    assert found.stages[0].count == count


def test_the_memory_measured_late_in_a_video_is_as_full_as_one_that_has_grown(engine, picture):
    grounder = engine.model.grounder
    encoded, prompts = encode(grounder, [picture()]), torch.ones(1, 32)
    first = conditioning(grounder, 0, encoded, decode_prompts(grounder, encoded, prompts))
    memory = VideoMemory((first,))
    for frame in range(1, 17):
        _, memory = step(grounder, frame, encoded, memory, consistent=False)
    late = late_memory(grounder, encoded, prompts, shown=1)
    assert len(late.conditioning) == len(memory.conditioning)
    assert [past.maps is None for past in late.recent] == [past.maps is None for past in memory.recent]
    assert [bench.LONG - past.frame for past in late.recent] == [17 - past.frame for past in memory.recent]


def test_an_architecture_is_built_with_random_weights_and_answers():
    engine = random_engine("tiny", device="cpu", dtype="fp32")
    answer = engine.ask(None, "Hello?", options=bench.Options(prefill="Hello."))
    assert (answer.text, engine.lineage["random"]) == ("Hello.", True)
    assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.float32}


@pytest.fixture
def run_bench():
    """Runs `segue bench ...` in this process."""
    from segue.cli.main import application

    return lambda *arguments: CliRunner().invoke(application(), ["bench", *arguments], catch_exceptions=False)


def test_the_command_prints_ratios_and_counts(run_bench):
    run = run_bench("--frames", "1", "--repeats", "1", "--objects", "1,2", "--device", "cpu")
    assert run.exit_code == 0
    assert "image, start to end: 2 objects / 1 object = " in run.stdout
    assert "SAM 2 encoder, video of 1 frame, 2 objects: ran on 1 frame\n" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--model", "demo", "--architecture", "tiny"), "both given"),
        (("--objects", "1,many"), "expected one such as 1,4,16"),
        (("--objects", "0"), "cannot be measured"),
        (("--architecture", "Sa2VA-1X"), "unknown architecture 'Sa2VA-1X'"),
    ],
)
def test_what_cannot_be_measured_gets_one_line(run_bench, arguments, text):
    run = run_bench(*arguments, "--json")
    assert run.exit_code == 2
    assert text in json.loads(run.stdout)["error"]
