import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from segue import weights
from segue.errors import CheckpointError
from segue.weights import Rule
from segue.weights.headers import SINGLE_FILES


def row(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def with_header(text, data=b""):
    """The bytes of a file with this header, given as an object or as text."""
    header = text.encode() if isinstance(text, str) else json.dumps(text).encode()
    return len(header).to_bytes(8, "little") + header + data


SOUND = with_header({"__metadata__": {"format": "pt"}, "a": row([2, 3], 0, 24), "none": row([0, 4], 24, 24)}, bytes(24))


def test_a_header_tells_names_types_and_shapes_without_reading_data(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(SOUND)
    found = weights.read_header(file)
    assert {name: (stored.dtype, stored.shape, stored.nbytes) for name, stored in found.items()} == {
        "a": ("F32", (2, 3), 24),
        "none": ("F32", (0, 4), 0),
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cut short"),
        (b"\x04\0\0", "cut short"),
        ((2**63).to_bytes(8, "little"), "cut short"),
        ((10).to_bytes(8, "little") + b"{}", "cut short"),
        (b"PK\x03\x04" + bytes(40), "pickle under another name"),
        (b"\x80\x02}q\x00." + bytes(40), "pickle under another name"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (with_header("{"), "no sound safetensors header"),
        (with_header("[]"), "no sound safetensors header"),
        (with_header("\udcff".encode("utf-8", "surrogateescape").decode("latin-1")), "no sound safetensors header"),
        (with_header('{"a":' + "[" * 100_000 + "}"), "no sound safetensors header"),
        (with_header('{"a": 1, "a": 2}'), "'a' stands there twice"),
        # found in one pass, however many names there are
        (with_header("{" + "".join(f'"{n}":0,' for n in range(100_000)) + '"99999":0}'), "'99999' stands there twice"),
        (with_header({"a": 5}), "no sound safetensors header"),
        (with_header({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "dtype"),
        (with_header({"a": row([1], 0, 4, "F31")}, bytes(4)), "type 'F31'"),
        (with_header({"a": row([1], 0, 4, ["F32"])}, bytes(4)), "no sound safetensors header"),
        (with_header({"a": row([-1], 0, 4)}, bytes(4)), "shape [-1]"),
        (with_header({"a": row([1.0], 0, 4)}, bytes(4)), "shape [1.0]"),
        (with_header({"a": row([True], 0, 4)}, bytes(4)), "shape [True]"),
        (with_header({"a": row([2**64, 0], 0, 0)}), "shape [18446744073709551616, 0]"),
        (with_header({"a": row([1], -4, 0)}), "at -4 to 0"),
        (with_header({"a": row([1], 0, 4), "b": row([1], 2, 6)}, bytes(6)), "begin at 2, expected 4"),
        (with_header({"a": row([1], 0, 4), "b": row([1], 8, 12)}, bytes(12)), "begin at 8, expected 4"),
        (with_header({"a": row([2], 0, 4)}, bytes(4)), "has 4 bytes, its type and shape need 8"),
        (with_header({"a": row([2**40], 0, 2**42)}), "header promises"),
        (with_header({"\x1b[2Ja": row([1], 0, 4)}, bytes(4)), "'\\x1b[2Ja' is no tensor name"),
        (SOUND[:-1], "header promises"),
        (SOUND + b"!", "header promises"),
    ],
)
def test_a_file_that_is_not_sound_is_refused_with_its_name_and_the_reason(tmp_path, content, words):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        weights.read_headers(tmp_path)
    assert str(file) in str(error.value) and words in str(error.value)


def test_a_file_that_cannot_be_opened_is_an_error_of_the_house(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot be read \(it is a folder\)"):
        weights.read_header(tmp_path)


@pytest.mark.parametrize(
    ("index", "files", "words"),
    [
        ({"weight_map": {"a": "one.safetensors"}}, ["one.safetensors"], None),
        ({"weight_map": {"a": "model.safetensors"}}, ["model.safetensors"], None),
        (None, ["model.safetensors", "other.safetensors"], None),
        (None, ["b.safetensors", "a.safetensors"], None),
        (
            {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}},
            ["one.safetensors"],
            "fetch two.safetensors",
        ),
        ({"weight_map": {"a": "../one.safetensors"}}, ["one.safetensors"], "'../one.safetensors'; expected"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, ["pytorch_model.bin"], "'pytorch_model.bin'; expected"),
        ({"weight_map": {}}, ["one.safetensors"], "no weight_map"),
        ({"weight_map": ["one.safetensors"]}, ["one.safetensors"], "no weight_map"),
        ({"weight_map": {"a": 1}}, ["one.safetensors"], "no weight_map"),
        ({"weight_map": {"a": "one.safetensors"}}, ["one.safetensors", "model.safetensors"], "two sets of weights"),
        (None, ["pytorch_model.bin"], "only pickled weights (pytorch_model.bin), which could run code"),
        (None, [], "holds no weights"),
    ],
)
def test_the_files_of_a_folder_are_those_of_its_index_or_its_only_ones(tmp_path, index, files, words):
    for name in files:
        (tmp_path / name).touch()
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    if words is None:
        found = [file.name for file in weights.checkpoint_files(tmp_path)]
        assert found == sorted(
            name for name in files if index or name in SINGLE_FILES or "model.safetensors" not in files
        )
    else:
        with pytest.raises(CheckpointError) as error:
            weights.checkpoint_files(tmp_path)
        assert words in str(error.value)


def test_a_folder_that_is_not_there_is_said_to_be_none(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        weights.checkpoint_files(tmp_path / "nowhere")


def test_shards_may_be_links_out_of_the_folder_as_in_the_hub_cache(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "abc").write_bytes(SOUND)
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/abc")
    assert set(weights.read_headers(tmp_path / "snapshot")) == {"a", "none"}


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"same": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"tensor same stands in both one\.safetensors and two\.safetensors"):
        weights.read_headers(tmp_path)


class Net(nn.Module):
    """Two projections that stand fused in the file, a table whose rows stand apart, and layers under other names."""

    def __init__(self, layers: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
        self.query, self.key = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
        self.table, self.copy = nn.Embedding(3, 2), nn.Linear(2, 2, bias=False)


TABLE = [
    Rule(r"body\.(\d+)\.(weight|bias)", (r"layers.\1.\2",)),
    Rule(
        r"qk\.(?:kernel|old)",
        ("query.weight", "key.weight"),
        split=lambda fused: fused.chunk(2),
        join=torch.cat,
    ),
    *(Rule(rf"rows\.{number}", ("table.weight",), row=number) for number in range(3)),
    Rule(r"copy\.weight", ("copy.weight",)),
]
TIED = {"copy.weight": "layers.0.weight"}


def upstream():
    draws = torch.Generator().manual_seed(0)
    shapes = {
        "body.0.weight": (2, 2),
        "body.0.bias": (2,),
        "body.1.weight": (2, 2),
        "body.1.bias": (2,),
        "qk.kernel": (6, 2),
    }
    shapes |= {f"rows.{number}": (1, 2) for number in range(3)} | {"copy.weight": (2, 2)}
    return {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    """Writes tensors into a folder in two shards and returns it."""

    def write(tensors):
        names = sorted(tensors)
        for number, part in enumerate((names[::2], names[1::2])):
            save_file({name: tensors[name] for name in part}, tmp_path / f"part{number}.safetensors")
        return tmp_path

    return write


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module."])
def test_names_in_the_wrapper_of_several_processes_are_told_with_the_command_that_takes_it_off(folder, wrapper):
    wrapped = {wrapper + name: tensor for name, tensor in upstream().items()}
    with pytest.raises(CheckpointError, match=rf"segue convert safetensors .* OUT --strip {wrapper}` writes it"):
        weights.load(Net(), folder(wrapped), TABLE)


def test_every_tensor_finds_its_place(folder):
    net, tensors = Net(), upstream()
    report = weights.load(net, folder(tensors), TABLE)
    assert torch.equal(net.layers[1].bias, tensors["body.1.bias"])
    assert torch.equal(torch.cat([net.query.weight, net.key.weight]), tensors["qk.kernel"])
    assert torch.equal(net.table.weight, torch.cat([tensors[f"rows.{number}"] for number in range(3)]))
    assert (report.total, report.renamed, report.tied, report.fresh) == (9, 8, (), ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_take_the_precision_of_their_places_whatever_the_file_has(folder, dtype):
    net, tensors = Net().to(dtype), upstream()
    tensors["body.0.bias"] = tensors["body.0.bias"].bfloat16()
    weights.load(net, folder(tensors), TABLE)
    assert net.layers[0].bias.dtype == dtype
    assert torch.equal(net.layers[0].weight, tensors["body.0.weight"].to(dtype))


def test_all_that_is_wrong_is_said_at_once_in_the_names_of_the_file_and_nothing_is_written(folder):
    net, tensors = Net(), upstream()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name in ("body.1.weight", "rows.1", "qk.kernel"):
        del tensors[name]
    tensors |= {"body.0.bias": torch.zeros(5), "rows.2": torch.zeros(2, 2), "stray.thing": torch.zeros(7, 1)}
    with pytest.raises(CheckpointError) as error:
        weights.load(net, folder(tensors), TABLE)
    first, *rest = str(error.value).splitlines()
    assert "2 misshapen, 3 missing, 1 unexpected" in first and "nothing was loaded" in first
    assert rest == [
        "  misshapen: body.0.bias is [5] in the file, the architecture needs [2]",
        "  misshapen: rows.2 is [2, 2] in the file, the architecture needs [1, 2]",
        "  missing: body.1.weight [2, 2]",
        "  missing: qk.kernel [6, 2]",
        "  missing: rows.1 [1, 2]",
        "  unexpected: stray.thing [7, 1]",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(("wrong", "needs"), [((5, 2), [6, 2]), ((6, 3), [6, 2]), ((), [6, 2])])
def test_a_fused_tensor_is_judged_by_the_shape_it_should_have_had(folder, wrong, needs):
    with pytest.raises(CheckpointError) as error:
        weights.load(Net(), folder(upstream() | {"qk.kernel": torch.zeros(wrong)}), TABLE)
    assert f"misshapen: qk.kernel is {list(wrong)} in the file, the architecture needs {needs}" in str(error.value)


def test_two_spellings_of_one_tensor_cannot_both_be_there(folder):
    with pytest.raises(CheckpointError, match=r"twice: qk\.\w+ and qk\.\w+ both fill query\.weight"):
        weights.load(Net(), folder(upstream() | {"qk.old": torch.zeros(6, 2)}), TABLE)


def test_a_cut_checkpoint_is_to_be_fetched_again_and_another_ones_config_is_to_be_replaced(folder):
    headers = weights.read_headers(folder(upstream()))
    places = {name: tuple(tensor.shape) for name, tensor in Net().state_dict().items()}
    whole = {name: stored for name, stored in headers.items() if name != "copy.weight"}
    with pytest.raises(CheckpointError, match="fetch the whole checkpoint again"):
        weights.check(whole, places, TABLE)
    with pytest.raises(CheckpointError, match="A is not B .*take config.json and weights from one checkpoint"):
        weights.check(whole, places, TABLE, contrast=lambda: "A is not B")


def test_a_tie_fills_what_the_file_leaves_out_and_the_report_says_so(folder):
    net, tensors = Net(), upstream()
    del tensors["copy.weight"]
    assert weights.load(net, folder(tensors), TABLE, tied=TIED).tied == ("copy.weight",)
    assert torch.equal(net.copy.weight, tensors["body.0.weight"])


def test_a_tie_to_something_missing_helps_nothing(folder):
    tensors = upstream()
    del tensors["copy.weight"], tensors["body.0.weight"]
    with pytest.raises(CheckpointError, match="2 missing"):
        weights.load(Net(), folder(tensors), TABLE, tied=TIED)


def test_what_may_be_fresh_stays_as_it_is_and_the_report_says_so(folder):
    net, tensors = Net(), upstream()
    kept = net.copy.weight.clone()
    del tensors["copy.weight"]
    assert weights.load(net, folder(tensors), TABLE, fresh=(r"copy\..*",)).fresh == ("copy.weight",)
    assert torch.equal(net.copy.weight, kept)


def test_many_problems_stand_on_few_lines_and_a_gap_in_the_layers_shows():
    places = {name: tuple(tensor.shape) for name, tensor in Net(layers=60).state_dict().items()}
    headers = {f"body.{layer}.bias": weights.Stored(Path("model.safetensors"), "F32", (2,)) for layer in (3, 4, 20)}
    with pytest.raises(CheckpointError) as error:
        weights.check(headers, places, TABLE)
    first, *rest = str(error.value).splitlines()
    assert "122 missing" in first
    assert rest[:2] == ["  missing: body.{0-2,5-19,21-59}.bias [2]", "  missing: body.{0-59}.weight [2, 2]"]
    assert len(rest) == 7


def test_a_table_read_backwards_names_what_an_upstream_file_holds():
    places = {name: tuple(tensor.shape) for name, tensor in Net().state_dict().items()}
    assert weights.upstream_shapes(places, TABLE) == {name: tuple(tensor.shape) for name, tensor in upstream().items()}


def test_upstream_names_come_back_with_the_tensors_they_had(folder):
    net, tensors = Net(), upstream()
    weights.load(net, folder(tensors), TABLE)
    back = weights.to_upstream(net.state_dict(), TABLE, tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(CheckpointError, match="covers the upstream name nobody"):
        weights.to_upstream(net.state_dict(), TABLE, ["nobody"])


def test_a_saved_module_loads_under_its_own_names_in_the_precision_asked_for(tmp_path):
    net, again = Net(layers=100), Net(layers=100)
    weights.save(net, tmp_path, dtype=torch.bfloat16, shard="1KB")
    assert {stored.dtype for stored in weights.read_headers(tmp_path).values()} == {"BF16"}
    assert len(weights.checkpoint_files(tmp_path)) > 1
    assert weights.load(again, tmp_path).renamed == 0
    assert torch.equal(again.query.weight, net.query.weight.bfloat16().float())


def test_lineage_names_every_file_with_its_hash_and_tells_other_weights_apart(folder):
    place = folder(upstream())
    report = weights.load(Net(), place, TABLE)
    found = weights.lineage(report)
    file = place / "part0.safetensors"
    assert found["files"]["part0.safetensors"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (found["tensors"], found["tied"]) == (9, [])
    folder(upstream() | {"rows.1": torch.ones(1, 2)})
    assert weights.lineage(weights.load(Net(), place, TABLE))["model_hash"] != found["model_hash"]


def test_written_lineage_says_what_a_folder_was_made_from(folder):
    place = folder(upstream())
    weights.write_lineage(place, {"model": "some/parent"})
    found = weights.read_json(place / "lineage.json")
    assert found["made_from"] == {"model": "some/parent"}
    assert found["model_hash"] == weights.lineage(weights.load(Net(), place, TABLE))["model_hash"]


def test_weights_of_the_right_type_stay_in_the_file_and_are_changed_here_alone(folder):
    tensors = upstream()
    place = folder(tensors)
    first, second = Net(), Net()
    weights.load(first, place, TABLE)
    weights.load(second, place, TABLE)
    file = place / "part1.safetensors"
    if Path("/proc/self/maps").exists():
        assert any(is_mapped(tensor, place) for tensor in first.parameters())
    before = file.read_bytes()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    assert file.read_bytes() == before
    assert torch.equal(second.layers[1].bias, tensors["body.1.bias"])


def is_mapped(tensor, folder):
    """Whether a tensor lies in a memory map of a file in that folder."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    return any(first <= tensor.data_ptr() < last for first, last in spans)


def test_places_that_receive_the_same_tensor_do_not_share_it(folder):
    place = folder({"both": torch.ones(2, 2)})
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)})
    weights.load(net, place, [weights.Rule("both", ("a.weight", "b.weight"))])
    with torch.no_grad():
        net["a"].weight.zero_()
    assert torch.equal(net["b"].weight, torch.ones(2, 2))


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000])
def test_a_json_file_that_holds_no_object_is_an_error_of_the_house(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        weights.read_json(tmp_path / "config.json")
