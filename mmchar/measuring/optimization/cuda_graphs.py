"""One execution as a CUDA graph: what has to be settled first, the capture, and why there may be none.

**Source**: PyTorch's notes on CUDA semantics, section "CUDA Graphs".
"""

import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from mmchar.measuring.timing import Work
from mmchar.models.specs import Model

SETTLE = 3  # untimed executions that a compiler and a graph capture want before the first sample


def capture(work: Work, rewind: Work, device: str) -> Work:
    """A replay of one execution, captured as a CUDA graph.

    It is rehearsed first, because a capture that breaks off leaves the allocator of this process in it. An execution
    that waits for the GPU, which no graph can hold, is a RuntimeError that says where it does so.
    """
    with torch.cuda.device(device), torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(SETTLE):
                rewind()
                work()
            rewind()
            with _no_waiting():
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph, read, kept = torch.cuda.CUDAGraph(), rewind(), []
        try:
            with torch.cuda.graph(graph):
                kept.append(work())
        except RuntimeError as error:  # what ends the capture fails too; why it broke off is the context of that
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            raise RuntimeError(f"no CUDA graph can be captured of it: {first}") from error
    # the outputs live in the graph's own memory; what it reads must outlive it
    return lambda: (graph.replay(), kept[0], read)[1]


def as_captured() -> AbstractContextManager:
    """What libraries leave out of a capture (transformers: reading masks) is left out of its warm-up too.

    A compiler's trace leaves it out by itself, and would be guarded by this patch.
    """
    return patch.object(torch.cuda, "is_current_stream_capturing", lambda: True)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """An operator that waits for the GPU is an error, which says where it was called from."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise RuntimeError(f"no CUDA graph can hold it, because it waits for the GPU at {_place(error)}") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _place(error: BaseException) -> str:
    """File and line of the library's or our own code, not PyTorch's, that an error comes from."""
    frames, inside = traceback.extract_tb(error.__traceback__), str(Path(torch.__file__).parent)
    outside = [frame for frame in frames if not frame.filename.startswith(inside)] or frames
    return f"{Path(outside[-1].filename).name}, line {outside[-1].lineno}"


def keep_indices(model: Model) -> None:
    """The token ids that Chameleon masks, a list that each execution copies to the GPU, as a tensor there.

    No graph can hold that copy. The mapping is the only thing of a model given that changes, and says the same.
    """
    for module in model.components.values():
        mapping = getattr(getattr(module, "model", None), "vocabulary_mapping", None)
        if mapping is not None and isinstance(mapping.image_tokens, list):  # a cached property
            mapping.image_tokens = torch.tensor(mapping.image_tokens, dtype=torch.int64, device=model.device)
