"""What one traced execution writes down: rows, bytes, live memory, and operators that nobody has a formula for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmchar.tracing.trace import trace


class Block(nn.Module):
    """Self attention and a written-out RMSNorm, small enough to count by hand."""

    class RMSNorm(nn.Module):
        def forward(self, x):
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def __init__(self):
        super().__init__()
        self.norm = self.RMSNorm()
        self.qkv = nn.Linear(24, 72, bias=False)
        self.attn1 = Heads()

    def forward(self, x):
        return self.attn1(*self.qkv(self.norm(x)).chunk(3, -1))


class Heads(nn.Module):
    def forward(self, q, k, v):
        b, n, d = q.shape
        split = lambda t: t.view(b, n, 3, d // 3).transpose(1, 2)  # noqa: E731  [b, n, d] -> [b, h, n, d / h]
        return F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).reshape(b, n, d)


def run(module, *inputs, device="meta"):
    module = module.to(device)
    moved = [x.to(device) for x in inputs]
    return {(row.module, row.op): row for row in trace(module, lambda: module(*moved))}


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_rows_of_a_small_block(device):
    rows = run(Block(), torch.randn(2, 5, 24), device=device)
    linear = rows["qkv", "linear"]
    # 2 * (2 * 5 rows) * 24 in * 72 out = 34_560; reads x (2*5*24) and the weight (24*72), writes 2*5*72, 4 bytes each
    assert (linear.flop, linear.read_bytes, linear.write_bytes) == (34_560, 4 * (240 + 1728), 4 * 720)
    core = rows["attn1", "scaled_dot_product_attention"]
    # two products of 2 * 2 batch * 3 heads * 5 * 5 * 8 = 2_400
    assert core.flop == 4_800
    assert (core.batch, core.heads, core.q_len, core.kv_len, core.head_dim) == (2, 3, 5, 5, 8)
    assert (core.read_bytes, core.write_bytes) == (3 * 240 * 4, 240 * 4)
    assert (core.attention, core.category, core.backend) == ("self", "Attention", "flash")
    assert {row.category for row in rows.values() if row.module == "norm"} == {"Normalization"}
    assert ("attn1", "clone") not in rows, "a fused kernel returns heads in an order that needs no copy"


def test_meta_and_cpu_give_the_same_rows():
    rows = [run(Block(), torch.randn(3, 7, 24), device=device) for device in ("meta", "cpu")]
    assert rows[0] == rows[1]


def test_a_mask_makes_a_call_ineligible_for_flash_and_is_read():
    class Masked(nn.Module):
        def forward(self, q, mask):
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    row = run(Masked(), torch.randn(2, 3, 5, 8), torch.randn(1, 1, 5, 5))["", "scaled_dot_product_attention"]
    assert (row.backend, row.mask_bytes) == ("mem-efficient", 100)
    assert row.read_bytes == 3 * 240 * 4 + 100


def test_live_bytes_count_what_is_alive_at_once():
    class Chain(nn.Module):
        def forward(self, x):
            for _ in range(4):
                x = x + 1  # the caller's x, the last sum and the new one are alive: never more than three
            return x

    row = run(Chain(), torch.randn(1000))["", "add"]
    assert row.calls == 4
    assert row.live_bytes == 3 * 4000

    class Keep(nn.Module):
        def forward(self, x):
            return [x + i for i in range(4)]

    assert run(Keep(), torch.randn(1000))["", "add"].live_bytes == 5 * 4000


def test_weights_are_not_live_activations():
    rows = run(nn.Linear(100, 10, bias=False), torch.randn(1, 100))
    assert rows["", "linear"].live_bytes == 4 * (100 + 10)


def test_an_embedding_reads_the_rows_it_picks():
    rows = run(nn.Embedding(1000, 16), torch.zeros(2, 3, dtype=torch.int64))
    # writes 2*3*16 floats; reads the same and six 8-byte ids, not the table of 64_000 bytes
    row = rows["", "embedding"]
    assert (row.write_bytes, row.read_bytes) == (384, 384 + 48)


def test_a_broadcast_operand_is_read_once():
    class Add(nn.Module):
        def forward(self, x, y):
            return x + y.expand(10, 100)

    assert run(Add(), torch.randn(10, 100), torch.randn(1, 100))["", "add"].read_bytes == 4 * (1000 + 100)


def test_dropout_out_of_training_is_free():
    class Drop(nn.Module):
        def forward(self, x):
            return F.dropout(x + 1, 0.1, training=False)

    assert set(run(Drop(), torch.randn(10))) == {("", "add")}


def test_an_operator_without_a_formula_is_uncounted_not_zero():
    class Factor(nn.Module):
        def forward(self, x):
            return torch.linalg.cholesky_ex(x)

    traced = trace(Factor(), lambda: Factor()(torch.eye(8)))
    assert {row.op for row in traced if row.category == "Uncounted"} == {"linalg_cholesky_ex"}


def test_hooks_and_modes_are_gone_after_a_failure():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("inside")

    broken = Broken()
    with pytest.raises(RuntimeError, match="inside"):
        trace(broken, lambda: broken(1))
    from torch.nn.modules import module as nn_module

    assert not nn_module._global_forward_hooks and not nn_module._global_forward_pre_hooks
    assert not torch.is_inference_mode_enabled()


def test_the_label_wraps_every_row_by_its_index():
    from contextlib import contextmanager

    seen = []

    @contextmanager
    def label(row):
        seen.append(row)
        yield

    block, x = Block(), torch.randn(2, 5, 24)
    traced = trace(block, lambda: block(x), label=label)
    assert set(seen) == set(range(len(traced)))
    assert sum(row.calls for row in traced) == len(seen)
