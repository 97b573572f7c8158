import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from mmchar.models.networks.architectures import CViViT, EfficientUNet, MaskedTokenTransformer

UNET = {
    "in_channels": 6,
    "out_channels": 3,
    "channels": [8, 16],
    "res_blocks": [1, 1],
    "attention": ["", "joint"],
    "attention_heads": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}
MASKED = {"vocabulary": 50, "max_tokens": 60, "dim": 24, "layers": 2, "heads": 3, "mlp_dim": 96, "text_dim": 20}
VIDEO = {
    "codebook": 50,
    "dim": 24,
    "spatial_layers": 1,
    "temporal_layers": 2,
    "heads": 3,
    "mlp_dim": 96,
    "patch": 4,
    "temporal_patch": 2,
    "max_side": 5,
    "max_time": 4,
}
DEVICES = pytest.mark.parametrize("device", ["meta", "cpu"])


class AttentionLengths(TorchFunctionMode):
    """Collects (batch, heads, q_len, kv_len, head_dim, causal) of every attention core."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            q, k = args[0], args[1]
            self.seen.append((*q.shape[:3], k.shape[2], q.shape[3], kwargs["is_causal"]))
        return func(*args, **(kwargs or {}))


def params(module):
    return sum(p.numel() for p in module.parameters())


def build(cls, config, device):
    torch.manual_seed(0)
    with torch.device(device):
        return cls(**config).eval().requires_grad_(False)


def test_parameters_of_efficient_unet_by_hand():
    embed = 4 * 8
    outside = (8 * embed + embed) + (embed * embed + embed)  # timestep: two linear layers
    outside += 2 * 12 + 12 + (12 * embed + embed)  # text: layer norm, pooling query, linear
    outside += (6 * 8 * 9 + 8) + (8 * 3 + 3)  # first 3x3 convolution and last 1x1
    outside += (8 * 8 * 9 + 8) + (8 * 16 * 9 + 16)  # halving
    outside += (8 * 8 * 9 + 8) + (16 * 16 * 9 + 16)  # doubling
    # a level: scale and shift of what enters, norm, 3x3, norm, 3x3, 1x1
    high_down = (embed * 16 + 16) + 2 * 8 + (8 * 8 * 9 + 8) + 2 * 8 + (8 * 8 * 9 + 8) + (8 * 8 + 8)
    high_up = (embed * 48 + 48) + 2 * 24 + (24 * 8 * 9 + 8) + 2 * 8 + (8 * 8 * 9 + 8) + (24 * 8 + 8)  # 8 + 16 skip = 24
    low = (embed * 32 + 32) + 2 * (2 * 16 + 16 * 16 * 9 + 16) + (16 * 16 + 16)
    low += (
        2 * 16 + 16 * 32 + 16 * 64 + 12 * 64 + 32 * 16
    )  # attention of width 2 x 16: norm, q, k and v, text k and v, out
    assert params(build(EfficientUNet, UNET, "meta")) == outside + high_down + high_up + 2 * low  # = 30_647


def test_parameters_of_masked_token_transformer_by_hand():
    layer = 4 * 24 * 24 + (2 * 24 * 24 + 2 * 20 * 24) + 2 * 24 * 96 + 3 * 2 * 24  # self, cross, MLP, norms
    tables = 51 * 24 + 60 * 24  # 50 tokens and the mask, tied to the head; positions
    assert params(build(MaskedTokenTransformer, MASKED, "meta")) == 2 * layer + tables + 2 * 24  # = 21_048


def test_parameters_of_cvivit_by_hand():
    layer = 4 * 24 * 24 + 2 * 24 * 96 + 2 * 2 * 24
    tables = 50 * 24 + 5 * 5 * 24 + 4 * 24
    pixels = (24 * 48 + 48) + (24 * 96 + 96)  # 3 * 4 * 4 of the first frame, twice that later
    assert params(build(CViViT, VIDEO, "meta")) == 3 * layer + tables + 2 * 24 + pixels  # = 26_568


@DEVICES
@pytest.mark.parametrize(("height", "width"), [(4, 12), (20, 8)])
def test_efficient_unet_returns_an_image_of_the_size_given(device, height, width):
    unet = build(EfficientUNet, UNET, device)
    sample, text = torch.zeros(3, 6, height, width, device=device), torch.zeros(3, 7, 12, device=device)
    out = unet(sample, torch.tensor([1, 500, 999], device=device), text)
    assert (out.shape, out.device.type) == ((3, 3, height, width), device)


@DEVICES
def test_masked_token_transformer_scores_the_mask_too(device):
    ids = torch.zeros(2, 37, dtype=torch.int64, device=device)
    out = build(MaskedTokenTransformer, MASKED, device)(ids, torch.zeros(2, 11, 20, device=device))
    assert (out.shape, out.device.type) == ((2, 37, 51), device)


@DEVICES
@pytest.mark.parametrize("time", [1, 2, 4])
def test_cvivit_returns_one_frame_then_two_per_token_image(device, time):
    tokens = torch.zeros(2, time, 3 * 5, dtype=torch.int64, device=device)
    out = build(CViViT, VIDEO, device).decode(tokens, height=3, width=5)
    assert (out.shape, out.device.type) == ((2, 3, 2 * time - 1, 12, 20), device)


def test_cvivit_takes_a_square_where_no_size_is_given():
    tokens = torch.zeros(1, 2, 9, dtype=torch.int64, device="meta")
    assert build(CViViT, VIDEO, "meta").decode(tokens).shape == (1, 3, 3, 12, 12)


@pytest.mark.parametrize(("kind", "kv_len"), [("joint", 10 + 7), ("cross", 7)])
def test_efficient_unet_attends_only_at_its_deepest_level(kind, kv_len):
    unet = build(EfficientUNet, {**UNET, "attention": ["", kind]}, "meta")
    with AttentionLengths() as lengths, torch.device("meta"):
        unet(torch.empty(3, 6, 8, 20), torch.empty(3), torch.empty(3, 7, 12))
    # 8 / 4 * 20 / 4 = 10 positions, on the way down and up; heads together twice as wide as the channels: 32 / 2
    assert lengths.seen == [(3, 2, 10, kv_len, 16, False)] * 2
    names = [name for name, _ in unet.named_modules() if name.endswith("_attn")]
    assert names == [f"down_blocks.1.{kind}_attn", f"up_blocks.1.{kind}_attn"]


def test_cvivit_attends_through_time_then_inside_frames():
    with AttentionLengths() as lengths, torch.device("meta"):
        build(CViViT, VIDEO, "meta").decode(torch.empty(2, 4, 15, dtype=torch.int64), height=3, width=5)
    assert lengths.seen == [(2 * 15, 3, 4, 4, 8, True)] * 2 + [(2 * 4, 3, 15, 15, 8, False)]


def test_cvivit_sees_no_later_frame():
    video = build(CViViT, VIDEO, "cpu")
    tokens = torch.randint(0, 50, (1, 4, 15))
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 50
    before, after = (video.decode(t, height=3, width=5) for t in (tokens, changed))
    assert torch.equal(before[:, :, :3], after[:, :, :3])  # token images 0 and 1 are frames 0, 1 and 2
    assert all(not torch.equal(before[:, :, f], after[:, :, f]) for f in range(3, 7))


def test_cvivit_puts_each_pixel_in_its_patch():
    video = build(CViViT, VIDEO, "cpu")
    pixels = torch.arange(3 * 2 * 4 * 4.0)
    video.to_frames.weight.zero_()
    video.to_frames.bias.copy_(pixels)
    frames = video.decode(torch.zeros(1, 2, 6, dtype=torch.int64), height=2, width=3)[0, :, 1:]
    assert torch.equal(frames, pixels.view(3, 2, 4, 4).repeat(1, 1, 2, 3))


def test_masked_token_transformer_sees_every_token_from_every_position():
    model = build(MaskedTokenTransformer, MASKED, "cpu")
    ids, text = torch.randint(0, 50, (1, 9)), torch.randn(1, 5, 20)
    changed = ids.clone()
    changed[:, -1] = 50  # the mask
    assert not torch.isclose(model(ids, text), model(changed, text)).all(dim=-1).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: build(EfficientUNet, UNET, "meta")(torch.empty(1, 6, 10, 8), torch.empty(1), torch.empty(1, 7, 12)),
            "an image of 10 x 8 given; height and width must be multiples of 4",
        ),
        (
            lambda: build(MaskedTokenTransformer, MASKED, "meta")(torch.empty(1, 61).long(), torch.empty(1, 7, 20)),
            "61 tokens given, but there are 60 positions; ask for less video",
        ),
        (
            lambda: build(CViViT, VIDEO, "meta").decode(torch.empty(1, 5, 9).long()),
            "5 x 3 x 3 tokens given, but there are 4 x 5 x 5 positions; ask for less video",
        ),
        (
            lambda: build(CViViT, VIDEO, "meta").decode(torch.empty(1, 2, 15).long()),
            "15 tokens per frame given, but 3 x 3 asked for; give both sizes",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_one_clear_line(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message
