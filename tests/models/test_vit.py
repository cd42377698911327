"""Vision Transformers against timm's, and against themselves: visible patches, other sizes, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from other_libraries import load_or_skip
from torch import Tensor, nn

from fastssl import models
from fastssl.models.vit import VisionTransformer, resized_positions, sincos_positions
from fastssl.ops import random_masking

TINY = dict(patch_size=4, width=32, depth=2, heads=4, image_size=16)
NAMES = ["vit_base", "vit_micro", "vit_small", "vit_tiny"]


@pytest.fixture(scope="module")
def timm() -> Any:
    return load_or_skip("timm")


def noise(module: nn.Module) -> nn.Module:
    """Every parameter drawn anew, so that none is at a value where it does nothing."""
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) / math.sqrt(max(1, p[0].numel()))
    return module.double().eval()


def images(batch: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base"])
def test_state_dict_is_timms(name: str, timm: Any) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(f"{name}_patch16_224", num_classes=0).state_dict()
        ours = models.get(name)(positions="learnt").state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in theirs.items()]


@pytest.mark.parametrize(("pool", "their_pool"), [("token", "token"), ("mean", "avg")])
@pytest.mark.parametrize("positions", ["sincos", "learnt"])
@pytest.mark.parametrize("size", [(16, 16), (24, 32)])
def test_features_are_timms(timm: Any, pool: Any, their_pool: str, positions: Any, size: tuple[int, int]) -> None:
    theirs = noise(
        timm.models.VisionTransformer(
            img_size=16,
            patch_size=4,
            embed_dim=32,
            depth=2,
            num_heads=4,
            num_classes=0,
            global_pool=their_pool,
            fc_norm=False,
            dynamic_img_size=True,
        )
    )
    ours = VisionTransformer(**TINY, positions=positions, pool=pool).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(2, *size)
    with torch.no_grad():
        # timm makes its interpolated positions in float32, whatever the model's own dtype
        tolerance = 1e-12 if size == (16, 16) else 1e-5
        torch.testing.assert_close(ours(x), theirs(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_feature_dim_is_what_comes_out(name: str) -> None:
    encoder = models.get(name)(depth=1).eval()
    assert encoder(torch.randn(2, 3, 32, 48)).shape == (2, models.feature_dim(encoder))


@pytest.mark.parametrize("positions", ["sincos", "learnt"])
@pytest.mark.parametrize("size", [(16, 16), (20, 12)])
def test_all_patches_visible_is_the_whole_path(positions: Any, size: tuple[int, int]) -> None:
    encoder = VisionTransformer(**TINY, positions=positions).double()
    x, length = images(3, *size), size[0] * size[1] // 16
    order = torch.stack([torch.randperm(length, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    whole, permuted = encoder.tokens(x), encoder.tokens(x, order)
    torch.testing.assert_close(permuted[:, :1], whole[:, :1], rtol=1e-12, atol=1e-12)
    expected = whole[:, 1:].gather(1, order[:, :, None].expand(-1, -1, 32))
    torch.testing.assert_close(permuted[:, 1:], expected, rtol=1e-12, atol=1e-12)


def test_hidden_patches_change_nothing() -> None:
    encoder = VisionTransformer(**TINY).double()
    ids_keep, _, mask = random_masking(2, 16, 0.75, generator=torch.Generator().manual_seed(0))
    x = images()
    hidden = mask.view(2, 1, 4, 4).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3).bool()
    tokens = encoder.tokens(x, ids_keep)
    assert tokens.shape == (2, 1 + 4, 32)
    assert torch.equal(encoder.tokens(x.masked_fill(hidden, 7.0), ids_keep), tokens)
    assert not torch.equal(encoder.tokens(x.masked_fill(~hidden, 7.0), ids_keep), tokens)


def test_gradients_of_the_masked_path_are_the_whole_paths() -> None:
    encoder = VisionTransformer(**TINY, positions="learnt").double()
    x, order = images(), torch.arange(16).flip(0).expand(2, -1)
    weight = torch.randn(17, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grads = []
    for tokens in (encoder.tokens(x), encoder.tokens(x, order)[:, [0, *range(16, 0, -1)]]):
        grads.append(torch.autograd.grad((tokens * weight).sum(), list(encoder.parameters())))
    for whole, masked in zip(*grads, strict=True):
        torch.testing.assert_close(masked, whole, rtol=1e-9, atol=1e-9)


def test_sincos_positions_by_hand() -> None:
    """Column 3 of row 1 in a grid of 2 x 5, eight channels: two wavelengths, sin and cos, of x and then of y."""
    table = sincos_positions(8, 2, 5)
    assert table.shape == (1, 11, 8)
    assert not table[0, 0].any()
    expected = [f(w * p) for p in (3, 1) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
    torch.testing.assert_close(table[0, 1 + 1 * 5 + 3], torch.tensor(expected))


def test_learnt_positions_train_and_the_table_does_not() -> None:
    learnt, table = (VisionTransformer(**TINY, positions=positions) for positions in ("learnt", "sincos"))
    assert learnt.pos_embed.requires_grad
    assert not table.pos_embed.requires_grad
    assert torch.equal(table.pos_embed, sincos_positions(32, 4, 4))
    for encoder in (learnt, table):
        encoder(images().float()).square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters() if p.requires_grad)


def test_resizing_keeps_a_constant_and_the_class_token() -> None:
    positions = torch.cat([torch.full((1, 1, 3), 5.0), torch.full((1, 6, 3), 2.0)], dim=1)
    resized = resized_positions(positions, (2, 3), (4, 4))
    torch.testing.assert_close(resized, torch.cat([torch.full((1, 1, 3), 5.0), torch.full((1, 16, 3), 2.0)], dim=1))
    assert resized_positions(positions, (2, 3), (2, 3)) is positions


def test_initialisation_is_xavier_of_matrices() -> None:
    torch.manual_seed(0)
    encoder = VisionTransformer(patch_size=8, width=128, depth=2, image_size=32)
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            outputs, inputs = module.weight.flatten(1).shape
            bound = math.sqrt(6 / (inputs + outputs))
            assert 0.98 * bound < module.weight.abs().max().item() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
            assert module.bias is not None
            assert not module.bias.any()


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_as_one_graph(masked: bool) -> None:
    encoder = VisionTransformer(**TINY)
    ids_keep = torch.arange(3).expand(2, -1) if masked else None
    x = images().float()
    compiled = torch.compile(encoder.tokens, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, ids_keep), encoder.tokens(x, ids_keep))


@pytest.mark.parametrize("size", [16, 24])
def test_bfloat16_and_autocast(size: int) -> None:
    encoder = VisionTransformer(**TINY)
    x = images(2, size, size).float()
    ids_keep = torch.arange(3).expand(2, -1)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.tokens(x, ids_keep).isfinite().all()
    features = encoder.bfloat16()(x.bfloat16())
    assert features.dtype == torch.bfloat16
    assert features.isfinite().all()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 16, 16), ValueError, r"\(3, 16, 16\)"),
        (torch.zeros(2, 1, 16, 16), ValueError, r"\(2, 1, 16, 16\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(2, 3, 16, 18), ValueError, "patches of 4 pixels do not fill images of 16 x 18"),
        (torch.zeros(2, 3, 0, 16), ValueError, "do not fill images of 0 x 16"),
    ],
)
def test_refuses_what_patches_do_not_fill(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VisionTransformer(**TINY)(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 0}, "patch_size must be at least 1; got 0"),
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"width": 36, "heads": 5}, "got 5 heads for a width of 36"),
        ({"width": 34, "heads": 2}, "a multiple of 4; got 34"),
        ({"image_size": 18}, "do not fill images of 18 x 18"),
        ({"pool": "max"}, "pool must be one of mean, token; got 'max'"),
        ({"positions": "none"}, "positions must be one of sincos, learnt; got 'none'"),
    ],
)
def test_refuses_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{**TINY, **settings})


def test_an_index_of_no_patch_is_named() -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 16\); got 16"):
        VisionTransformer(**TINY).tokens(images().float(), torch.full((2, 1), 16))


def test_the_map_is_the_last_tokens_in_their_places() -> None:
    encoder, x = VisionTransformer(**TINY).eval(), images(2, 16, 24).float()
    found = encoder.maps(x)
    assert found.shape == (2, 32, 4, 6)
    assert torch.equal(found[1, :, 2, 3], encoder.tokens(x)[1, 1 + 2 * 6 + 3])
    torch.testing.assert_close(found.mean((2, 3)), encoder(x))


def test_attention_of_the_class_token_is_what_mixes_the_values() -> None:
    encoder = noise(VisionTransformer(**TINY))
    x = images()
    maps = encoder.class_attention(x)
    assert maps.shape == (2, 4, 4, 4)
    last, seen = encoder.blocks[-1], []
    handle = last.norm1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    encoder(x)
    handle.remove()
    width = 32 // 4
    for n in range(2):
        qkv = last.attn.qkv(seen[0][n])
        for head in range(4):
            query, keys, values = (qkv[:, 32 * i + width * head : 32 * i + width * (head + 1)] for i in range(3))
            powers = (query[0] @ keys.T / math.sqrt(width)).exp()
            share = powers / powers.sum()
            torch.testing.assert_close(maps[n, head].flatten(), share[1:])
            weights = last.attn.weights(seen[0])[n, head]
            torch.testing.assert_close(weights.sum(1), torch.ones(17, dtype=torch.float64))
            torch.testing.assert_close(weights[0] @ values, share @ values)


def test_a_token_stands_for_masked_patches_with_their_positions() -> None:
    encoder = noise(VisionTransformer(**TINY))
    x, token = images(), torch.randn(1, 1, 32, dtype=torch.float64)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3] = mask[1, 5] = True
    seen: list[Tensor] = []
    encoder.blocks.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    encoder.tokens(x, masked=(mask, token))
    encoder.tokens(x)
    changed, plain = seen
    where = torch.nn.functional.pad(mask, (1, 0))
    assert torch.equal(changed[~where], plain[~where])
    torch.testing.assert_close(changed[0, 4], token[0, 0] + encoder.pos_embed[0, 4])
    torch.testing.assert_close(changed[1, 6], token[0, 0] + encoder.pos_embed[0, 6])
