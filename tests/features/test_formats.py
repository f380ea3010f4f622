"""Features to bytes and back. Numbers in names are those of the conformance list in docs/cache.md."""

import pytest
import torch

from segue.errors import ConfigError, DataError
from segue.features import FORMATS, formats


def gaussian(*shape, outlier=0.0, seed=1):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if outlier:
        values[..., 5] = outlier * (1 + 0.1 * values[..., 5])
    return values


def restored(name, values):
    form = FORMATS[name]
    return form.decode(form.encode(values), values.dtype)


@pytest.mark.parametrize("name", ["lossless", "lossless-split"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_21_lossless_is_equal_to_the_last_bit(name, dtype):
    if name == "lossless-split":
        pytest.importorskip("zstandard")
    values = gaussian(3, 16, 64).to(dtype)
    assert torch.equal(restored(name, values), values)


def test_21_a_damaged_compressed_plane_is_refused():
    pytest.importorskip("zstandard")
    parts = FORMATS["lossless-split"].encode(gaussian(3, 16, 64))
    parts["hi"][len(parts["hi"]) // 2] ^= 1
    with pytest.raises(DataError, match="damaged"):
        FORMATS["lossless-split"].decode(parts, torch.float32)


def test_21_a_compressed_plane_of_another_length_is_refused():
    zstandard = pytest.importorskip("zstandard")
    parts = FORMATS["lossless-split"].encode(gaussian(3, 16, 64))
    parts["hi"] = torch.frombuffer(bytearray(zstandard.compress(b"1234")), dtype=torch.uint8)
    with pytest.raises(DataError, match="holds 4 values where 3072"):
        FORMATS["lossless-split"].decode(parts, torch.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_19_zeros_stay_zeros(name):
    if name == "lossless-split":
        pytest.importorskip("zstandard")
    values = gaussian(2, 9, 128)
    values[:, 3], values[..., 7] = 0, 0
    assert torch.equal(restored(name, torch.zeros(2, 9, 128)), torch.zeros(2, 9, 128))
    back = restored(name, values)
    assert back.isfinite().all()
    assert not back[:, 3].any()
    assert not back[..., 7].any()


def test_17_one_scale_for_all_is_off_by_half_a_step_at_most():
    values = gaussian(3, 16, 96)
    step = values.abs().max() / 127
    assert (restored("int8-per-tensor", values) - values).abs().max() <= step / 2 * (1 + 1e-5)


def test_20_infinities_are_refused_with_their_count():
    values = gaussian(2, 4, 8)
    values[0, 0, :2] = torch.tensor([float("inf"), float("nan")])
    with pytest.raises(DataError, match="2 of 64"):
        formats.check_finite(values)


def test_22_error_of_one_scale_follows_the_largest_value_and_int8_does_not():
    values = gaussian(4, 64, 512, outlier=40.0)
    coarse = formats.measure(values, restored("int8-per-tensor", values))
    assert coarse.error == pytest.approx(coarse.peak / 440, rel=0.1)
    assert formats.measure(values, restored("int8", values)).error < 0.01


@pytest.mark.parametrize("channels", [32, 64, 96, 1024])
def test_int8_error_is_under_one_percent_at_any_width(channels):
    values = gaussian(8, 144, channels)
    assert formats.measure(values, restored("int8", values)).error < 0.01


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(3, 16, 128), (5, 32), (0, 4, 128), (1, 1, 1)])
def test_a_format_weighs_what_it_says(name, shape):
    if name == "lossless-split":
        pytest.importorskip("zstandard")
    values = gaussian(*shape)
    parts = FORMATS[name].encode(values)
    weight = sum(tensor.nbytes for tensor in parts.values())
    told = FORMATS[name].nbytes(shape, torch.float32)
    assert weight <= told + 32 if name == "lossless-split" else weight == told
    assert restored(name, values).shape == values.shape


def test_23_pieces_do_not_change_what_is_restored(monkeypatch):
    values = gaussian(7, 16, 128)
    whole = FORMATS["int8"].encode(values)
    monkeypatch.setattr(formats, "_rows", lambda channels: 5)
    pieces = FORMATS["int8"].encode(values)
    assert torch.equal(whole["q"], pieces["q"])
    assert torch.equal(FORMATS["int8"].decode(whole, torch.float32), FORMATS["int8"].decode(pieces, torch.float32))


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_23_a_gpu_restores_the_same_numbers():
    parts = FORMATS["int8"].encode(gaussian(7, 16, 128))
    on_gpu = FORMATS["int8"].decode({name: part.cuda() for name, part in parts.items()}, torch.float16)
    host = FORMATS["int8"].decode(parts, torch.float16)
    assert (on_gpu.cpu().view(torch.int16).int() - host.view(torch.int16).int()).abs().max() <= 1


def test_an_unknown_format_is_named():
    with pytest.raises(ConfigError, match="'int4'"):
        formats.lookup("int4")
