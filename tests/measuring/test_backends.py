"""Attention backends: what is refused before anything runs, what is allowed, and the package in place of PyTorch's."""

import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from samples import one_line

from mmchar.measuring.optimization import backends
from mmchar.measuring.optimization.backends import attention_backend, byte_model, check_backend, check_shapes


@pytest.mark.parametrize(
    ("attention", "device", "dtype", "says"),
    [
        ("sparse", "cpu", "float32", "unknown attention 'sparse'; choose one of flash, eager, math"),
        ("cudnn", "cpu", "float32", "needs an NVIDIA GPU; on a cpu choose one of flash, eager, math"),
        ("mem-efficient", "cpu", "float32", "needs an NVIDIA GPU"),
        ("cudnn", "cuda", "float32", "'cudnn' has no float32; use --dtype bfloat16 or float16"),
    ],
)
def test_what_cannot_run_is_refused_with_what_can(attention, device, dtype, says):
    with pytest.raises(ValueError, match=says) as caught:
        check_backend(attention, device=device, dtype=dtype)
    one_line(caught)


def test_flash_attn_needs_its_package_and_half_precision(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install mmchar\[flash-attn\]"):
        check_backend("flash-attn", device="cuda", dtype="bfloat16")
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    check_backend("flash-attn", device="cuda", dtype="bfloat16")
    with pytest.raises(ValueError, match="'flash-attn' has no float32"):
        check_backend("flash-attn", device="cuda", dtype="float32")


def cores(**more):
    row = {"stage": "denoise", "category": "Attention", "batch": 2, "heads": 8, "q_len": 64, "kv_len": 77,
           "head_dim": 40, "mask_bytes": 0, "dtype": "bfloat16"}  # fmt: skip
    linear = {**row, "category": "Linear", "q_len": 0, "head_dim": 0, "dtype": "float32"}
    return pd.DataFrame([{**row, **more}, linear])


def test_a_shape_that_a_backend_cannot_take_is_named_before_the_run():
    check_shapes("flash-attn", cores(), device="cuda")
    with pytest.raises(ValueError, match="cannot take a call of stage denoise .*kv_len 77.*with a mask") as caught:
        check_shapes("flash-attn", cores(mask_bytes=154), device="cuda")
    one_line(caught)
    with pytest.raises(ValueError, match="head_dim 512"):
        check_shapes("flash-attn", cores(head_dim=512), device="cuda")
    for lenient in ("flash", "eager", "math"):
        check_shapes(lenient, cores(head_dim=512, mask_bytes=4), device="cuda")


@pytest.mark.parametrize(("attention", "asked"), [("cudnn", "cudnn"), ("mem-efficient", "efficient")])
def test_pytorch_is_asked_about_the_shapes_of_the_model(monkeypatch, attention, asked):
    seen = []

    def refuse(params):
        seen.append(params)
        return False

    monkeypatch.setattr(torch.backends.cuda, f"can_use_{asked}_attention", refuse)
    with pytest.raises(ValueError, match=f"attention '{attention}' cannot take"):
        check_shapes(attention, cores(mask_bytes=4), device="cpu")  # the tensors of the question, on what is here
    (params,) = seen
    assert params.query.shape == (2, 8, 64, 40)
    assert params.key.shape == params.value.shape == (2, 8, 77, 40)
    assert params.query.stride()[1] == 40, "heads lie side by side, as a projection leaves them"
    assert params.attn_mask.shape == (2, 8, 64, 77)
    monkeypatch.setattr(torch.backends.cuda, f"can_use_{asked}_attention", lambda params: True)
    check_shapes(attention, cores(), device="cpu")


def test_the_math_path_upcasts_and_eager_does_not():
    for attention, allowed in (("eager", True), ("math", False), ("flash", False)):
        with attention_backend(attention):
            assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == allowed
            assert torch.backends.cuda.math_sdp_enabled() == (attention != "flash")
            assert torch.backends.cuda.flash_sdp_enabled() == (attention == "flash")


@pytest.mark.parametrize(("attention", "on"), [("mem-efficient", "mem_efficient"), ("cudnn", "cudnn")])
def test_a_strict_backend_allows_no_other(attention, on):
    with attention_backend(attention):
        enabled = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in
                   ("flash", "mem_efficient", "math", "cudnn")}  # fmt: skip
    assert [name for name, is_on in enabled.items() if is_on] == [on]


@pytest.fixture
def package(monkeypatch):
    """A stand-in for the flash-attn package that computes with PyTorch and keeps a diary."""
    calls = []

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        calls.append({"q": tuple(q.shape), "k": tuple(k.shape), "causal": causal, "scale": softmax_scale})
        each = (tensor.transpose(1, 2).float() for tensor in (q, k, v))
        scores = torch.nn.functional.softmax(next(each) @ next(each).mT / q.shape[-1] ** 0.5, dim=-1)
        return (scores @ next(each)).to(q.dtype).transpose(1, 2).contiguous()

    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash_attn_func))
    return calls


def test_the_package_answers_every_attention_call_and_is_traced_as_one(package):
    from mmchar.measuring.operator_times import profile_once

    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    module = torch.nn.Identity()

    def work():
        return torch.nn.functional.scaled_dot_product_attention(query=q, key=k, value=k)

    want = work()
    with attention_backend("flash-attn"):
        torch.testing.assert_close(work(), want)
        profile = profile_once(module, work, "cpu")
    assert package[0] == {"q": (2, 5, 3, 8), "k": (2, 7, 3, 8), "causal": False, "scale": None}
    (row,) = [row for row in profile.rows if row.category == "Attention"]
    assert (row.op, row.heads, row.q_len, row.kv_len) == ("scaled_dot_product_attention", 3, 5, 7)
    assert profile.ran[profile.rows.index(row)] == "flash-attn"
    assert work().equal(want) and len(package) == 2, "outside, PyTorch answers again"


def test_the_package_refuses_a_mask(package):
    q = torch.randn(1, 1, 4, 8)
    with attention_backend("flash-attn"), pytest.raises(ValueError, match="takes no mask"):
        torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(4, 4, dtype=torch.bool))


def test_byte_models():
    assert {name: byte_model(name) for name in ("eager", "math", "flash", "cudnn")} == {
        "eager": "eager",
        "math": "eager",
        "flash": "flash",
        "cudnn": "flash",
    }


@pytest.mark.gpu
def test_on_a_gpu_a_strict_backend_is_what_ran_or_refused():
    import mmchar
    from mmchar.measuring.optimization.ladder import Levers

    for attention in ("mem-efficient", "cudnn"):
        try:
            table = mmchar.measure(
                "flux.1-dev", device="cuda", tiny=True, samples=2, attention=attention, stages=["denoise"],
                levers=Levers(), progress=False,
            )  # fmt: skip
        except ValueError as error:
            assert "cannot take a call" in str(error)
        else:
            assert set(table.loc[table["category"] == "Attention", "backend"]) == {attention}
