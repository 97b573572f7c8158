"""An operator table as plain arrays: what projecting reads of it, taken out of the DataFrame once."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mmchar.counting.operator_table import LENGTHS, OUTSIDE
from mmchar.tracing.attention import ITEM_BYTES, kernels_per_call
from mmchar.tracing.operators import MOVEMENT, SOFTMAX, WHOLE_NORMS, out_of_place, words

FUSED_BACKENDS = ("flash", "mem-efficient")
POINTWISE = ("Normalization", "Elementwise", "Data movement")
HIDES = ("none", "attention", "stage")  # what a message between GPUs may hide behind: see `communication`
POINT_TO_POINT = ("send_recv", "all_to_all")  # collectives that are made of messages between pairs of GPUs
SIZES = LENGTHS[-3:]  # m, n, k; the lengths before are those of an attention core
_NUMBERS = ("flop", "read_bytes", "write_bytes", "calls", "repeats", *LENGTHS[:-3])
_SCALAR_BYTES = 8
_VECTOR = 8
_IN_REGISTERS = 1024  # longest row whose softmax PyTorch computes without leaving registers
# Two maps of numbers into one, which may have to repeat one of them.
_BINARY = words("add sub mul div addcmul where maximum minimum")


@dataclass(frozen=True)
class Columns:
    """Columns of an operator table, one element per row; numbers as in ``data/README.md``, the others true or false."""

    flop: np.ndarray
    read_bytes: np.ndarray
    write_bytes: np.ndarray
    calls: np.ndarray
    repeats: np.ndarray
    batch: np.ndarray
    heads: np.ndarray
    q_len: np.ndarray
    kv_len: np.ndarray
    head_dim: np.ndarray
    m: np.ndarray  # sizes of a product; of one whose table does not say, what follows from its bytes
    n: np.ndarray
    k: np.ndarray
    launches: np.ndarray  # kernels that the host issues for all calls
    outside: np.ndarray  # what runs between the networks, which no execution compiles
    stage: np.ndarray  # a number for each
    dtype: np.ndarray  # index into dtypes
    core: np.ndarray  # attention cores with lengths
    fused: np.ndarray  # cores whose backend is a fused kernel
    flash: np.ndarray  # cores whose backend is the flash kernel
    causal: np.ndarray
    convolution: np.ndarray
    spatial_kernel: np.ndarray  # convolutions of more than one position
    aligned: np.ndarray  # products whose rows vectors can load
    depthwise: np.ndarray  # convolutions with a group for each channel
    group_norm: np.ndarray
    slow_softmax: np.ndarray  # numbers of long rows that vectors cannot load, of which a softmax is taken
    one_by_one: np.ndarray  # numbers of kernels that handle one at a time, not whole vectors; 0 of others
    sent: np.ndarray  # messages to other GPUs
    pairs: np.ndarray  # messages that go from pair to pair
    peers: np.ndarray  # GPUs that a message goes to
    hides: np.ndarray  # index into HIDES
    site: np.ndarray  # a number for each module that attends while it sends; 0 is any other
    step: np.ndarray  # a number for each step of stages where some row sends, and for each stage elsewhere
    dtypes: tuple[str, ...]

    def of_dtype(self, *names: str) -> np.ndarray:
        """Which rows have one of the numeric types."""
        return np.isin(self.dtype, [i for i, name in enumerate(self.dtypes) if name in names])

    def runs_eager(self, execution: str) -> np.ndarray:
        """Which rows run operator by operator: all in eager mode, and in any mode what runs between the networks."""
        return self.outside | (execution == "eager")

    def __len__(self) -> int:
        return len(self.flop)


def columns_of(table: pd.DataFrame) -> Columns:
    """The columns of an operator table that projecting reads."""
    table = pd.DataFrame(table)  # without attrs, which pandas would copy, deeply, with every column
    numbers = {name: table[name].to_numpy().astype("int64") for name in _NUMBERS}
    core = holds(table, "category", "Attention") & (numbers["q_len"] > 0)
    convolution = holds(table, "category", "Convolution")
    sent = holds(table, "category", "Communication")
    hides = peers = np.zeros(len(table), dtype="int64")
    stage = step = _numbered(table, "model", "stage")
    if sent.any():
        hides = table["overlap"].astype(str).map(HIDES.index).to_numpy()
        peers = table["peers"].to_numpy().astype("int64")
        step = _numbered(table, "model", "stage", "step")
    dtype, dtypes = _codes(table["dtype"]), tuple(map(str, table["dtype"].astype("category").cat.categories))
    item = _item_bytes(dtype, dtypes)
    sizes = _product_sizes(table, numbers, item)
    return Columns(
        **numbers,
        launches=launches(table),
        outside=holds(table, "stage", OUTSIDE),
        stage=stage,
        dtype=dtype,
        core=core,
        fused=core & holds(table, "backend", *FUSED_BACKENDS),
        flash=core & holds(table, "backend", "flash"),
        causal=core & holds(table, "attention", "causal"),
        convolution=convolution,
        **sizes,
        spatial_kernel=convolution & _has_spatial_kernel(numbers, sizes, item),
        aligned=_aligned(numbers, sizes, core, convolution),
        depthwise=convolution & (sizes["n"] == 1),
        group_norm=holds(table, "op", "native_group_norm"),
        slow_softmax=_slow_softmax(table, numbers, sizes, core),
        one_by_one=_one_by_one(table, numbers, item),
        sent=sent,
        pairs=sent & holds(table, "op", *POINT_TO_POINT),
        peers=peers,
        hides=hides,
        site=_sites(table, core, hides),
        step=step,
        dtypes=dtypes,
    )


def merge_equal(columns: Columns) -> Columns:
    """The same work in fewer rows: rows that differ in nothing but ``repeats`` become one, with the sum of theirs.

    A network repeats its blocks, so a few hundred rows stand for thousands, and totals take that much less time.
    """
    arrays = {name: value for name, value in vars(columns).items() if isinstance(value, np.ndarray)}
    keys = np.column_stack([value.astype("int64") for name, value in arrays.items() if name != "repeats"])
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    merged = {name: value[first] for name, value in arrays.items()}
    merged["repeats"] = np.bincount(group.ravel(), columns.repeats).astype("int64")
    return replace(columns, **merged)  # type: ignore[arg-type]


def launches(table: pd.DataFrame) -> np.ndarray:
    """Launches the host issues for all calls of a row; a row that does and moves nothing launches nothing."""
    each = np.ones(len(table), dtype="int64")
    masked = table["mask_bytes"].to_numpy() > 0
    for backend in ("eager", "math"):
        here = holds(table, "backend", backend)
        each[here & ~masked] = kernels_per_call(backend, False)
        each[here & masked] = kernels_per_call(backend, True)
    works = (table["flop"] + table["read_bytes"] + table["write_bytes"]).to_numpy() > 0
    return table["calls"].to_numpy() * each * works


def _product_sizes(table: pd.DataFrame, numbers: dict[str, np.ndarray], item: np.ndarray) -> dict[str, np.ndarray]:
    """``m, n, k`` of each row, in agreement with its FLOP and bytes, of which several GPUs each do a part.

    Of a product without sizes, those of one that does as much: ``[m, k] @ [k, n]`` reads k (m + n) numbers and writes
    m n, which is enough to solve for all three.
    """
    known = {name: table[name].to_numpy().astype("int64") for name in SIZES if name in table}
    m, n, k = (known.get(name, np.zeros(len(table), dtype="int64")) for name in SIZES)
    calls = np.maximum(numbers["calls"], 1)
    each = numbers["flop"] / (2 * calls)  # multiply-adds
    written = np.maximum(numbers["write_bytes"] / (calls * item), 1.0)
    norm = (n == 0) & (m > 0)
    m, k = np.where(n > 0, each / np.maximum(n * k, 1), m), np.where(norm, written / np.maximum(m, 1), k)
    depth = np.maximum(each / written, 1.0)
    half = numbers["read_bytes"] / (calls * item) / depth / 2  # of m + n
    larger = np.clip(half + np.sqrt(np.maximum(half**2 - written, 0.0)), np.sqrt(written), written)
    unknown = (each > 0) & (n == 0)
    found = (larger, written / larger, depth)
    return {name: np.where(unknown, new, old) for name, new, old in zip(SIZES, found, (m, n, k), strict=True)}


def _has_spatial_kernel(numbers: dict[str, np.ndarray], sizes: dict[str, np.ndarray], item: np.ndarray) -> np.ndarray:
    """Whether a convolution's products need more numbers than its input has: those of neighbours."""
    weight = sizes["n"] * sizes["k"]
    image = numbers["read_bytes"] / np.maximum(numbers["calls"] * item, 1) - weight - sizes["n"]
    return sizes["m"] * sizes["k"] > 1.5 * np.maximum(image, 1)


def _aligned(
    numbers: dict[str, np.ndarray], sizes: dict[str, np.ndarray], core: np.ndarray, convolution: np.ndarray
) -> np.ndarray:
    """Whether the rows of a product's operands are a multiple of eight numbers: 16 bytes in half precision."""
    product = (sizes["n"] % _VECTOR == 0) & (sizes["k"] % _VECTOR == 0)
    return np.where(core, numbers["kv_len"] % _VECTOR == 0, product | convolution | (sizes["n"] <= 1))


def _slow_softmax(
    table: pd.DataFrame, numbers: dict[str, np.ndarray], sizes: dict[str, np.ndarray], core: np.ndarray
) -> np.ndarray:
    """Numbers of which all calls of a row take a softmax where rows are neither aligned nor fit into registers."""
    rows = numbers["batch"] * numbers["heads"] * numbers["q_len"] * (core & holds(table, "backend", "eager", "math"))
    length = np.where(core, numbers["kv_len"], sizes["k"])
    rows = np.where(holds(table, "op", *SOFTMAX), sizes["m"], rows)
    return numbers["calls"] * rows * length * ((length % _VECTOR != 0) & (length > _IN_REGISTERS))


def _one_by_one(table: pd.DataFrame, numbers: dict[str, np.ndarray], item: np.ndarray) -> np.ndarray:
    """Numbers that all calls of a row write, where its kernel takes them one by one rather than as whole vectors.

    Such kernels compute an index for each number: they broadcast, change strides or normalize rows. So do copies to a
    wider type; those to a narrower one do not. **Source**: traces of Wan2.1 and Qwen1.5 on H100, torch 2.6 (TraceLens):
    bfloat16 to float32 at 1.2 numbers per clock and multiprocessor, back at nine tenths of memory bandwidth.
    """
    read, written = numbers["read_bytes"], numbers["write_bytes"]
    binary = [op for op in table["op"].astype("category").cat.categories if out_of_place(op) in _BINARY]
    copies, broadcasts = holds(table, "op", "_to_copy"), holds(table, "op", *binary)
    widens = (copies | broadcasts) & (read < written) & (written <= 2 * read)
    repeats = broadcasts & (read % np.maximum(written, 1) > _SCALAR_BYTES * numbers["calls"])
    moves = holds(table, "op", *(MOVEMENT - {"_to_copy"}), *WHOLE_NORMS)
    return np.where(widens, read, written) // item * (moves | repeats | (copies & widens))


def item_bytes(columns: Columns) -> np.ndarray:
    """Bytes of one number of each row's type; those of half precision where the type is unknown."""
    return _item_bytes(columns.dtype, columns.dtypes)


def _item_bytes(dtype: np.ndarray, dtypes: tuple[str, ...]) -> np.ndarray:
    return np.array([ITEM_BYTES.get(name, 2) for name in dtypes] or [2])[dtype]


def holds(table: pd.DataFrame, column: str, *values: str) -> np.ndarray:
    """Whether the column holds one of the values; quick on categoricals."""
    if not isinstance(table[column].dtype, pd.CategoricalDtype):
        return table[column].isin(values).to_numpy()
    there = table[column].cat.categories.isin(values)
    return np.append(there, False)[table[column].cat.codes]  # code -1: nothing


def denoising(table: pd.DataFrame) -> pd.Series:
    """Which rows are of a denoising stage."""
    return table["stage"].astype(str).str.startswith("denoise")


def _sites(table: pd.DataFrame, core: np.ndarray, hides: np.ndarray) -> np.ndarray:
    """A number for each module whose messages hide behind its attention, the same for modules that do the same."""
    site = np.zeros(len(table), dtype="int64")
    hidden = hides == HIDES.index("attention")
    if not hidden.any():
        return site
    module = _numbered(table, "model", "stage", "step", "module")
    rows = np.flatnonzero((core | hidden) & np.isin(module, module[hidden]))
    keys = np.column_stack([_codes(table["stage"]), hidden, *(table[name].to_numpy() for name in _NUMBERS)])[rows]
    _, kind = np.unique(keys, axis=0, return_inverse=True)
    seen: dict[tuple[int, ...], int] = {}
    for one in np.unique(module[rows]):
        mine = module[rows] == one
        does = tuple(sorted(kind.ravel()[mine]))
        site[rows[mine]] = seen.setdefault(does, len(seen) + 1)
    return site


def _numbered(table: pd.DataFrame, *columns: str) -> np.ndarray:
    return table.groupby(list(columns), observed=True, sort=False).ngroup().to_numpy()


def _codes(column: pd.Series) -> np.ndarray:
    return column.astype("category").cat.codes.to_numpy().astype("int64")
