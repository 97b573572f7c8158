"""Kinds of attention from what it attends to: small networks by hand, and tiny transformers of diffusers by class."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmchar.tracing.token_sources import TokenSources
from mmchar.tracing.trace import trace

DEVICES = ("meta", "cpu")
IMAGE, TEXT, WIDTH = 16, 5, 24


def kinds(module, *args, **kwargs):
    """``{(attention, q_len, kv_len): calls}`` of one forward."""
    calls: Counter = Counter()
    for row in trace(module, lambda: module(*args, **kwargs)):
        if row.attention:
            calls[row.attention, row.q_len, row.kv_len] += row.calls
    return calls


def attend(q, k):
    """Attention of ``(batch, tokens, width)`` in two heads."""
    q, k = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k))  # [b, n, d] -> [b, h, n, d / h]
    return F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2)


class Network(nn.Module):
    """A network whose ``step`` is given an image and a text, both as wide as each other."""

    def __init__(self, step):
        super().__init__()
        self.step, self.mix = step, nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden_states, encoder_hidden_states):
        return self.step(self.mix(hidden_states), self.mix(encoder_hidden_states))


def one_sequence(image, text):
    both = torch.cat([text, image], dim=1)
    both = both + attend(both, both)
    text, image = both.split([TEXT, IMAGE], dim=1)
    image = attend(image.relu(), image.relu())  # the image alone again
    return attend(image, text), attend(both[:, 2:TEXT], both[:, :TEXT])


def keys_only(image, text):
    return attend(image, torch.cat([text, image], dim=1))


def written(image, text):
    both = image.new_zeros(image.shape[0], TEXT + IMAGE, WIDTH)
    both[:, :TEXT] = text
    both[:, TEXT:] = image
    return attend(both * 2, both * 2)


def merged(image, text):
    places = torch.arange(IMAGE + TEXT, device=image.device)[:, None] < TEXT
    both = torch.where(places, F.pad(text, (0, 0, 0, IMAGE)), F.pad(image, (0, 0, TEXT, 0)))
    return attend(both, both)


def side_by_side(image, text):
    """Text features added to every place, and beside the image's own numbers: no text token is among the keys."""
    image = image + text.mean(1, keepdim=True)
    wide = torch.cat([image, image], dim=-1)
    return attend(wide, wide)


def with_a_class(image, text):
    """A token that is neither, as a class or the length of a sound."""
    more = torch.cat([torch.zeros_like(image[:, :1]), image], dim=1)
    return attend(more, more)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (one_sequence, {("joint", 21, 21): 1, ("self", 16, 16): 1, ("cross", 16, 5): 1, ("cross", 3, 5): 1}),
        (keys_only, {("joint", 16, 21): 1}),
        (written, {("joint", 21, 21): 1}),
        (merged, {("joint", 21, 21): 1}),
        (side_by_side, {("self", 16, 16): 1}),
        (with_a_class, {("self", 17, 17): 1}),
    ],
)
def test_what_the_keys_hold_says_the_kind(step, expected, device):
    image, text = torch.rand(2, IMAGE, WIDTH, device=device), torch.rand(2, TEXT, WIDTH, device=device)
    network = Network(step).to(device)
    assert kinds(network, image, encoder_hidden_states=text) == expected
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_text_of_as_many_tokens_as_the_image_is_still_looked_at_from_elsewhere():
    network = Network(lambda image, text: (attend(image, text), attend(image, image), attend(text, text)))
    same = torch.rand(2, IMAGE, WIDTH)
    assert kinds(network, torch.rand(2, IMAGE, WIDTH), same) == {("cross", 16, 16): 1, ("self", 16, 16): 2}


def test_lengths_that_add_up_by_chance_say_nothing():
    """The image at one level has as many places as the text has tokens and the next level places: 11 + 5 = 16."""

    def levels(image, text):
        low = image[:, :11]
        return attend(image, image), attend(low, low), attend(image, text)

    expected = {("self", 16, 16): 1, ("self", 11, 11): 1, ("cross", 16, 5): 1}
    assert kinds(Network(levels), torch.rand(1, IMAGE, WIDTH), torch.rand(1, TEXT, WIDTH)) == expected


def test_a_width_that_equals_the_tokens_is_not_cut_as_tokens():
    """Queries, keys and values come out of one layer of width 3 * 7 = 21 = 5 + 16 and are cut along it."""
    layer = nn.Linear(WIDTH, 21)

    def step(image, text):
        q, k, v = layer(torch.cat([text, image], dim=1)).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])

    assert kinds(Network(step), torch.rand(1, IMAGE, WIDTH), torch.rand(1, TEXT, WIDTH)) == {("joint", 21, 21): 1}


def test_a_network_of_one_input_is_not_marked():
    class Alone(nn.Module):
        def forward(self, hidden_states, encoder_hidden_states=None):
            both = torch.cat([hidden_states, hidden_states], dim=1)
            return attend(both, both)

    assert kinds(Alone(), torch.rand(1, IMAGE, WIDTH)) == {("self", 32, 32): 1}


def test_an_outer_module_knows_better_than_an_inner_one():
    class Refiner(nn.Module):
        """Calls the text that it refines its hidden states, and is given a context too."""

        def forward(self, hidden_states, encoder_hidden_states):
            return attend(hidden_states, torch.cat([encoder_hidden_states, hidden_states], dim=1))

    refiner = Refiner()
    network = Network(lambda image, text: refiner(text, text + 1))
    network.refiner = refiner
    assert kinds(network, torch.rand(1, IMAGE, WIDTH), torch.rand(1, TEXT, WIDTH)) == {("cross", 5, 10): 1}
    alone = kinds(refiner, torch.rand(1, IMAGE, WIDTH), torch.rand(1, TEXT, WIDTH))
    assert alone == {("joint", 16, 21): 1}


def test_a_causal_language_model_of_text_and_image_stays_causal():
    class Decoder(nn.Module):
        def forward(self, input_ids, pixel_values):
            text = F.one_hot(input_ids, WIDTH).float()
            both = torch.cat([pixel_values, text], dim=1)[:, None]
            return F.scaled_dot_product_attention(both, both, both, is_causal=True)

    ids = torch.zeros(1, TEXT, dtype=torch.int64)
    assert kinds(Decoder(), ids, torch.rand(1, IMAGE, WIDTH)) == {("causal", 21, 21): 1}


def test_parts_follow_joins_and_cuts():
    sources = TokenSources()
    image, text = torch.rand(1, 4, 3), torch.rand(1, 2, 3)
    sources.mark(Network(None), (image,), {"encoder_hidden_states": text})
    assert (sources.parts(image), sources.parts(text)) == ((("image", 0),), (("context", 0),))

    both = torch.cat([text, image], dim=1)
    sources.follow("cat", ([text, image], 1), [text, image], both)
    assert sources.parts(both) == (("context", 2), ("image", 4))

    more = torch.cat([both, torch.zeros(1, 1, 3)], dim=1)
    sources.follow("cat", ([both, torch.zeros(1, 1, 3)], 1), [both, torch.zeros(1, 1, 3)], more)
    assert sources.parts(more) == (("context", 2), ("image", 4), ("", 1))

    middle = more[:, 1:-2]
    sources.follow("slice", (more, 1, 1, -2), [more], middle)
    assert sources.parts(middle) == (("context", 1), ("image", 3))

    pair = more.split([2, 5], dim=1)
    sources.follow("split_with_sizes", (more, [2, 5], 1), [more], pair)
    assert [sources.parts(part) for part in pair] == [(("context", 0),), (("image", 4), ("", 1))]


# --- diffusers


def new(*shape):
    return torch.rand(shape)


def packed(width=24, *, image=64, text=37, axes=3):
    """What FLUX and its kin are called with."""
    positions = {"img_ids": new(image, axes), "txt_ids": new(text, axes)}
    tokens = {"hidden_states": new(1, image, 16), "encoder_hidden_states": new(1, text, width)}
    return {**tokens, **positions, "timestep": new(1)}


SMALL = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
SINGLE = {**SMALL, "num_single_layers": 2, "in_channels": 16, "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6)}
APPROXIMATOR = {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
VIDEO = {"timestep": torch.tensor([1.0]), "hidden_states": torch.rand(1, 4, 3, 8, 8)}
TINY = {
    "FluxTransformer2DModel": (
        {**SINGLE, "pooled_projection_dim": 24},
        {**packed(), "pooled_projections": new(1, 24)},
        {("joint", 101, 101): 3},
    ),
    "BriaTransformer2DModel": (SINGLE, packed(), {("joint", 101, 101): 3}),
    "ChromaTransformer2DModel": ({**SINGLE, **APPROXIMATOR}, packed(), {("joint", 101, 101): 3}),
    "OvisImageTransformer2DModel": ({**SINGLE, "out_channels": 16}, packed(), {("joint", 101, 101): 3}),
    "LongCatImageTransformer2DModel": (
        {**SINGLE, "pooled_projection_dim": 24},
        packed(),
        {("joint", 101, 101): 3},
    ),
    "AuraFlowTransformer2DModel": (
        {**{name: SMALL[name] for name in ("attention_head_dim", "num_attention_heads")}, "num_mmdit_layers": 1}
        | {"num_single_dit_layers": 2, "joint_attention_dim": 24, "caption_projection_dim": 32, "sample_size": 16},
        {"hidden_states": new(1, 4, 16, 16), "encoder_hidden_states": new(1, 37, 24), "timestep": new(1)},
        {("joint", 109, 109): 3},  # 8 registers are among the text
    ),
    "Lumina2Transformer2DModel": (
        {"hidden_size": 96, "num_layers": 2, "num_attention_heads": 3, "num_kv_heads": 1, "cap_feat_dim": 24}
        | {"axes_dim_rope": (8, 12, 12)},
        {"hidden_states": new(1, 16, 16, 16), "encoder_hidden_states": new(1, 37, 24), "timestep": new(1)}
        | {"encoder_attention_mask": torch.ones(1, 37, dtype=torch.bool)},
        {("self", 37, 37): 2, ("self", 64, 64): 2, ("joint", 101, 101): 2},
    ),
    "PRXTransformer2DModel": (
        {"in_channels": 4, "context_in_dim": 24, "hidden_size": 64, "num_heads": 2, "depth": 2, "axes_dim": [16, 16]},
        {"hidden_states": new(1, 4, 16, 16), "encoder_hidden_states": new(1, 37, 24), "timestep": new(1)},
        {("joint", 64, 101): 2},
    ),
    "CogVideoXTransformer3DModel": (
        {**SMALL, "in_channels": 4, "text_embed_dim": 24, "time_embed_dim": 8, "max_text_seq_length": 7}
        | {"sample_width": 8, "sample_height": 8, "sample_frames": 9},
        {"hidden_states": new(1, 3, 4, 8, 8), "encoder_hidden_states": new(1, 7, 24), "timestep": torch.tensor([1])},
        {("joint", 55, 55): 1},
    ),
    "HunyuanVideoTransformer3DModel": (
        {**SMALL, "num_single_layers": 2, "in_channels": 4, "text_embed_dim": 24, "pooled_projection_dim": 24}
        | {"rope_axes_dim": (4, 6, 6), "num_refiner_layers": 1},
        {**VIDEO, "encoder_hidden_states": new(1, 7, 24), "pooled_projections": new(1, 24), "guidance": new(1)}
        | {"encoder_attention_mask": torch.ones(1, 7, dtype=torch.bool)},
        {("self", 7, 7): 1, ("joint", 55, 55): 3},
    ),
    "WanTransformer3DModel": (
        {**SMALL, "in_channels": 4, "text_dim": 24, "ffn_dim": 16, "freq_dim": 8, "image_dim": 24}
        | {"added_kv_proj_dim": 32},
        # the tokens of an image to start from are a context too, and looked at apart from those of the text
        {**VIDEO, "encoder_hidden_states": new(1, 512, 24), "encoder_hidden_states_image": new(1, 57, 24)},
        {("self", 48, 48): 1, ("cross", 48, 512): 1, ("cross", 48, 57): 1},
    ),
    "UNet2DConditionModel": (
        {"block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 24, "norm_num_groups": 4}
        | {"down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "attention_head_dim": 2}
        | {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")},
        # levels of 64 and 16 places, and a text of their difference
        {"sample": new(1, 4, 8, 8), "timestep": torch.tensor([1]), "encoder_hidden_states": new(1, 48, 24)},
        {("self", 64, 64): 3, ("self", 16, 16): 4, ("cross", 64, 48): 3, ("cross", 16, 48): 4},
    ),
}


@pytest.mark.parametrize("name", TINY)
def test_kinds_of_diffusers_transformers_and_unets(name):
    import diffusers

    config, inputs, expected = TINY[name]
    torch.manual_seed(0)
    network = getattr(diffusers, name)(**config).eval()
    assert kinds(network, **inputs) == expected
