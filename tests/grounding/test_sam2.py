import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from segue.grounding import sam2
from segue.grounding.sam2 import ABSENT, DEVIATION, MEAN, LanguageSam2, architecture, frame_pixels


@pytest.fixture(scope="module")
def grounder(engine):
    return engine.model.grounder


@pytest.fixture(scope="module")
def two(engine_i):
    """With a language decoder beside the original one."""
    return engine_i.model.grounder


@pytest.fixture(scope="module")
def frame(picture):
    return frame_pixels(picture(), 256)[None]


@pytest.fixture(scope="module")
def encoded(grounder, frame):
    with torch.no_grad():
        return grounder.encode(frame)


@pytest.fixture(scope="module")
def prompts():
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def watch():
    """Records what a module is called with and what it returns, as (named arguments, result) per call."""
    hooks = []

    def record(module):
        calls = []
        hooks.append(
            module.register_forward_hook(lambda _, a, named, out: calls.append((named, out)), with_kwargs=True)
        )
        return calls

    with torch.no_grad():
        yield record
    for hook in hooks:
        hook.remove()


@pytest.fixture
def rate_masks():
    """Makes a mask decoder rate the single mask, number 0, highest of all, and then the mask of a number."""
    before = []

    def rate(decoder, best):
        head = decoder.iou_prediction_head.proj_out
        before.append((head, head.weight.clone(), head.bias.clone()))
        head.weight.zero_()
        head.bias.copy_(torch.tensor([3.0, *(1.0 + (number == best) for number in (1, 2, 3))]))

    with torch.no_grad():
        yield rate
        for head, weight, bias in reversed(before):
            head.weight.copy_(weight)
            head.bias.copy_(bias)


def remembered(encoded, count=2):
    """Features that stand for those after memory attention, one map per object."""
    return encoded.top + torch.randn(count, *encoded.top.shape[1:], generator=torch.Generator().manual_seed(1))


def test_parity_grounding_bf16_constants_normalise_every_frame(picture):
    imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    assert torch.equal(torch.tensor([MEAN, DEVIATION]), imagenet.to(torch.bfloat16).float())
    image = picture(50, 70)
    square = np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC), dtype=np.float64)
    expected = (square / 255 - np.array(MEAN)) / np.array(DEVIATION)
    pixels = frame_pixels(image, 256)
    assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 256, 256))
    assert np.abs(pixels.permute(1, 2, 0).numpy() - expected).max() < 1e-6


def test_places_are_encoded_as_the_library_does(grounder):
    assert torch.allclose(
        grounder.image_position_encoding(), grounder.sam2.get_image_wide_positional_embeddings(), atol=1e-5
    )


@torch.no_grad()
def test_frames_encoded_together_equal_frames_encoded_alone(grounder, clip):
    pixels = torch.stack([frame_pixels(image, 256) for image in clip(3)])
    together = grounder.encode(pixels)
    for number in range(3):
        alone, one = grounder.encode(pixels[number : number + 1]), together.frame(number)
        assert torch.allclose(one.top, alone.top, atol=1e-4)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one.fine, alone.fine, strict=True))
        assert torch.equal(one.position, alone.position)


def test_features_have_strides_4_8_and_16(encoded):
    assert [level.shape[-2:] for level in (*encoded.fine, encoded.top)] == [(64, 64), (32, 32), (16, 16)]
    assert encoded.position.shape == (1, 32, 16, 16)


def test_a_prompt_follows_two_empty_points_and_the_decoder_sees_the_frame_without_memory(
    grounder, encoded, prompts, watch
):
    calls = watch(grounder.sam2.mask_decoder)
    grounder.prompted(encoded, prompts)
    (seen, _), model = calls[0], grounder.sam2
    empty = model.prompt_encoder.not_a_point_embed.weight[0]
    sparse = seen["sparse_prompt_embeddings"]
    assert sparse.shape == (1, 3, 3, 32)
    assert torch.equal(sparse[0, 1], torch.stack([empty, empty, prompts[1]]))
    no_mask = model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
    assert torch.equal(seen["dense_prompt_embeddings"], no_mask.expand(1, 32, 16, 16))
    assert torch.equal(seen["image_embeddings"], encoded.top + model.no_memory_embedding.view(1, -1, 1, 1))
    assert len(calls) == 1  # all objects at once


def test_a_tracked_object_is_asked_for_by_two_empty_points_alone(grounder, encoded, watch):
    calls = watch(grounder.sam2.mask_decoder)
    top = remembered(encoded)
    grounder.tracked(encoded, top, consistent=False)
    seen, _ = calls[0]
    empty = grounder.sam2.prompt_encoder.not_a_point_embed.weight
    assert torch.equal(seen["sparse_prompt_embeddings"], empty.expand(2, 1, 2, 32))
    assert torch.equal(seen["image_embeddings"], top)


@pytest.mark.parametrize("is_tracked", [False, True])
def test_parity_best_of_three_by_estimated_iou_and_never_the_single_mask(
    grounder, encoded, prompts, watch, rate_masks, is_tracked
):
    calls, top = watch(grounder.sam2.mask_decoder), remembered(encoded, 3)
    for best in (1, 2, 3):
        rate_masks(grounder.sam2.mask_decoder, best)
        decoded = (
            grounder.tracked(encoded, top, consistent=False) if is_tracked else grounder.prompted(encoded, prompts)
        )
        seen, (masks, ious, tokens, presence) = calls[-1]
        assert seen["multimask_output"] is True
        masks, ious, tokens = masks.flatten(0, 1), ious.flatten(0, 1), tokens.flatten(0, 1)
        assert torch.equal(decoded.logits, masks[:, best - 1])
        assert torch.equal(decoded.iou, ious[:, best - 1])
        pointer = grounder.sam2.object_pointer_proj(tokens[:, best - 1])
        is_there = presence.view(-1, 1) > 0
        assert torch.equal(decoded.pointer, torch.where(is_there, pointer, grounder.sam2.no_object_pointer))


@pytest.mark.parametrize("is_tracked", [False, True])
def test_parity_ungated_masks_of_objects_judged_invisible_stay_and_only_their_pointer_is_replaced(
    grounder, encoded, prompts, force_presence, is_tracked
):
    def decode():
        top = remembered(encoded)
        return grounder.tracked(encoded, top, consistent=False) if is_tracked else grounder.prompted(encoded, prompts)

    force_presence(grounder.sam2.mask_decoder, 8.0)
    visible = decode()
    force_presence(grounder.sam2.mask_decoder, -8.0)
    invisible = decode()
    assert torch.equal(visible.logits, invisible.logits)
    assert visible.logits.std() > 0.1
    assert torch.equal(invisible.pointer, grounder.sam2.no_object_pointer.expand_as(invisible.pointer))
    assert not torch.allclose(visible.pointer, invisible.pointer)
    assert (visible.presence.unique().tolist(), invisible.presence.unique().tolist()) == ([8.0], [-8.0])


def test_consistent_tracking_puts_nowhere_for_an_object_judged_invisible(two, encoded, force_presence):
    force_presence(two.sam2.mask_decoder, -8.0)
    decoded = two.tracked(encoded, remembered(encoded), consistent=True)
    assert decoded.logits.unique().tolist() == [ABSENT]
    assert torch.equal(decoded.pointer, two.sam2.no_object_pointer.expand_as(decoded.pointer))


def test_consistent_tracking_leaves_the_mask_of_a_visible_object(two, encoded, force_presence, watch):
    force_presence(two.sam2.mask_decoder, 8.0)
    calls = watch(two.sam2.mask_decoder)
    decoded = two.tracked(encoded, remembered(encoded), consistent=True)
    masks, ious = calls[0][1][0].flatten(0, 1), calls[0][1][1].flatten(0, 1)
    assert torch.equal(decoded.logits, masks[range(2), ious.argmax(-1)])


@pytest.mark.parametrize(
    ("ask", "is_language"),
    [
        (lambda grounder, encoded, prompts: grounder.prompted(encoded, prompts), True),
        (lambda grounder, encoded, prompts: grounder.tracked(encoded, remembered(encoded), consistent=False), True),
        (lambda grounder, encoded, prompts: grounder.tracked(encoded, remembered(encoded), consistent=True), False),
        (lambda grounder, encoded, prompts: grounder.decode_with_masks(encoded, torch.ones(2, 9, 9) > 0), False),
    ],
)
def test_each_question_goes_to_its_own_decoder_with_that_decoders_own_fine_features(
    two, encoded, prompts, watch, ask, is_language
):
    language, original = watch(two.language_decoder), watch(two.sam2.mask_decoder)
    ask(two, encoded, prompts)
    assert (len(language), len(original)) == ((1, 0) if is_language else (0, 1))
    decoder = two.language_decoder if is_language else two.sam2.mask_decoder
    fine = (language or original)[0][0]["high_resolution_features"]
    assert torch.equal(fine[0][:1], decoder.conv_s0(encoded.fine[0]))
    assert torch.equal(fine[1][:1], decoder.conv_s1(encoded.fine[1]))


@torch.no_grad()
def test_objects_asked_for_together_equal_objects_asked_for_alone(grounder, encoded, prompts):
    together = grounder.prompted(encoded, prompts)
    for number in range(3):
        alone = grounder.prompted(encoded, prompts[number : number + 1])
        for field in ("logits", "iou", "presence", "pointer"):
            assert torch.allclose(getattr(together, field)[number], getattr(alone, field)[0], atol=1e-4)


@torch.no_grad()
def test_objects_tracked_together_equal_objects_tracked_alone(grounder, encoded):
    top = remembered(encoded, 3)
    together = grounder.tracked(encoded, top, consistent=False)
    for number in range(3):
        alone = grounder.tracked(encoded, top[number : number + 1], consistent=False)
        for field in ("logits", "iou", "presence", "pointer"):
            assert torch.allclose(getattr(together, field)[number], getattr(alone, field)[0], atol=1e-4)


def test_parity_memory_bf16_rounds_the_maps_of_float32_runs(grounder, encoded, watch):
    calls = watch(grounder.sam2.memory_encoder)
    logits = 4 * torch.randn(2, 64, 64)
    maps = grounder.encode_memory(encoded, logits)
    exact = calls[0][1][0]
    assert (exact.dtype, maps.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(maps, exact.to(torch.bfloat16))
    assert not torch.equal(maps.float(), exact)


def test_a_mask_is_remembered_soft_and_scaled(grounder, encoded):
    drawn = []
    encoder = grounder.sam2.memory_encoder
    hook = encoder.register_forward_pre_hook(lambda _, arguments: drawn.append(arguments))
    logits = 4 * torch.randn(2, 64, 64)
    with torch.no_grad():
        grounder.encode_memory(encoded, logits)
    hook.remove()
    top, mask = drawn[0]
    whole = interpolate(logits[:, None], (256, 256), mode="bilinear", align_corners=False)
    assert torch.allclose(mask, 20 * whole.sigmoid() - 10)
    assert torch.equal(top[0], encoded.top[0])  # without the no-memory vector


@pytest.fixture
def mask():
    """Two objects in a 48 x 80 picture: a square, and nothing."""
    masks = torch.zeros(2, 48, 80, dtype=torch.bool)
    masks[0, 10:30, 20:60] = True
    return masks


@torch.no_grad()
def test_a_given_mask_comes_back_at_plus_and_minus_ten_through_the_low_resolution(two, encoded, mask):
    low = two.decode_with_masks(encoded, mask).logits
    whole = (interpolate(mask[:, None].float(), (256, 256), mode="bilinear", antialias=True) >= 0.5).float()
    expected = interpolate(20 * whole - 10, (64, 64), mode="bilinear", antialias=True)[:, 0]
    assert torch.allclose(low, expected, atol=1e-5)
    assert low[0].max() > 9.99
    assert torch.allclose(low[1], torch.tensor(-10.0))


def test_a_given_masks_pointer_comes_from_the_single_mask_token(two, encoded, mask, force_presence, watch):
    force_presence(two.sam2.mask_decoder, 8.0)
    calls = watch(two.sam2.mask_decoder)
    decoded = two.decode_with_masks(encoded, mask)
    seen, (_, _, tokens, _) = calls[0]
    assert seen["multimask_output"] is False
    assert torch.allclose(decoded.pointer[0], two.sam2.object_pointer_proj(tokens[0, 0, 0]), atol=1e-5)
    assert torch.equal(seen["image_embeddings"][0], encoded.top[0])  # without the no-memory vector


def test_an_empty_given_mask_has_no_pointer_and_is_not_there(two, encoded, mask, force_presence):
    force_presence(two.sam2.mask_decoder, 8.0)
    decoded = two.decode_with_masks(encoded, mask)
    assert torch.equal(decoded.pointer[1], two.sam2.no_object_pointer[0])
    assert decoded.presence.tolist() == [10.0, -10.0]


def test_a_given_mask_that_the_decoder_does_not_believe_in_has_no_pointer(two, encoded, mask, force_presence):
    force_presence(two.sam2.mask_decoder, -8.0)
    assert torch.equal(two.decode_with_masks(encoded, mask).pointer[0], two.sam2.no_object_pointer[0])


def test_without_sizes_the_architecture_is_hiera_large():
    config = architecture()
    backbone = config.vision_config.backbone_config
    expected = {
        "hidden_size": 144,
        "num_attention_heads": 2,
        "blocks_per_stage": [2, 6, 36, 4],
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "window_size_per_stage": [8, 4, 16, 8],
        "global_attention_blocks": [23, 33, 43],
    }
    assert {name: list(v) if isinstance(v := getattr(backbone, name), tuple) else v for name in expected} == expected
    assert list(config.vision_config.backbone_channel_list) == [1152, 576, 288, 144]
    assert (config.image_size, config.num_maskmem, list(config.memory_attention_rope_feat_sizes)) == (1024, 7, [64, 64])
    assert not config.enable_temporal_pos_encoding_for_object_pointers
    assert not config.enable_occlusion_spatial_embedding


def test_hiera_large_has_the_size_of_the_released_sam2():
    with torch.device("meta"):
        module = LanguageSam2(architecture(), two_decoders=True)
    counts = [sum(p.numel() for p in part.parameters()) for part in (module.sam2, module.language_decoder)]
    # 224,430,386 upstream with the Gaussian matrix of 256, which is a buffer here; a mask decoder has 4,215,109
    assert counts == [224_430_386 - 256, 4_215_109]


@pytest.mark.parametrize("memory", [8, 64])
def test_memory_maps_may_have_another_width_than_the_librarys(randomise, memory):
    sizes = {"embed_dim": 8, "num_heads": 1, "stages": [1, 1, 1, 1], "global_att_blocks": [], "image_size": 256}
    sizes |= {"d_model": 64, "mem_dim": memory, "mem_attn_layers": 1, "mem_attn_ffn": 8, "fuser_layers": 1}
    sizes |= {"mask_decoder_mlp_dim": 8, "iou_head_hidden_dim": 8}
    module = randomise(LanguageSam2(sam2.architecture(sizes), two_decoders=False)).eval()
    with torch.no_grad():
        encoded = module.encode(torch.randn(1, 3, 256, 256))
        assert module.encode_memory(encoded, torch.randn(1, 64, 64)).shape == (1, memory, 16, 16)
    assert module.sam2.memory_attention.layers[0].cross_attn_image.k_proj.in_features == memory


@torch.no_grad()
def test_prompts_of_several_frames_asked_together_equal_each_frame_asked_alone(grounder, clip, prompts):
    pixels = torch.stack([frame_pixels(image, 256) for image in clip(2)])
    both = grounder.encode(pixels)
    asked = torch.stack([prompts, prompts.flip(0)])
    together = grounder.prompted_each(both, asked)
    for frame in range(2):
        alone = grounder.prompted(both.frame(frame), asked[frame])
        for field in ("logits", "iou", "presence", "pointer"):
            part = getattr(together, field)[3 * frame : 3 * frame + 3]
            assert torch.allclose(part, getattr(alone, field), atol=1e-4)


@torch.no_grad()
def test_candidates_are_all_three_masks_of_each_object_and_the_best_of_them_is_the_answer(grounder, encoded, prompts):
    three, best = grounder.candidates(encoded, prompts[None]), grounder.prompted(encoded, prompts)
    assert (len(three.logits), len(best.logits)) == (9, 3)
    chosen = three.iou.view(3, 3).argmax(1) + torch.arange(0, 9, 3)
    for field in ("logits", "iou", "presence", "pointer"):
        assert torch.equal(getattr(three, field)[chosen], getattr(best, field))
