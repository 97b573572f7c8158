"""A request to change by hand in a notebook, and what becomes of it: the widgets of ``notebooks/explore.ipynb``."""

from importlib.util import find_spec
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mmchar.models.loading import get_spec, zoo_names
from mmchar.projection.data_sheets import get_gpu, list_gpus
from mmchar.projection.roofline import project
from mmchar.projection.scaling import count_batch
from mmchar.projection.summary import summarize_memory
from mmchar.request import Request
from mmchar.runs.figures import figure_bytes
from mmchar.study.drawing.look import amount
from mmchar.study.drawing.plots import operator_breakdown
from mmchar.study.site.breakdown import breakdown, lengths

FIELDS = ("height", "width", "frames", "batch", "steps")
MISSING = "ipywidgets is missing: `pip install ipywidgets` and restart the kernel; or see `explore.html` of `make site`"


def explorer(model: str = "sdxl-base-1.0", gpu: str = "a100-80gb") -> Any:
    """Widgets to choose a model, a GPU and a request, above the figure and the numbers of that generation.

    A first count of a size or of steps takes seconds, and says so; what was counted before is redrawn in under a
    second. What a model does not take is said in one line, and the last figure stays. Without ipywidgets: a line that
    says what to install. Raises a ValueError for an unknown model or GPU.
    """
    get_spec(model), get_gpu(gpu)
    if find_spec("ipywidgets") is None:
        from IPython.display import Markdown

        return Markdown(MISSING)
    import ipywidgets as widgets

    choices = {"model": (zoo_names(), model), "gpu": (sorted(list_gpus()["name"]), gpu)}
    boxes: dict[str, Any] = {
        name: widgets.Dropdown(options=options, value=value, description=name)
        for name, (options, value) in choices.items()
    }
    boxes |= {name: widgets.IntText(description=name, continuous_update=False) for name in FIELDS}
    said = widgets.Label()
    drawn = widgets.Image(format="png", layout=widgets.Layout(max_width="55em", width="100%"))

    def redraw(_: Any = None) -> None:
        said.value = "counting …"
        try:
            asked = {name: boxes[name].value for name in FIELDS if not boxes[name].disabled}
            line, figure = answer(boxes["model"].value, boxes["gpu"].value, asked)
        except ValueError as error:
            said.value = str(error)
            return
        said.value, drawn.value = line, figure_bytes(figure, ".png")

    def fill(_: Any = None) -> None:
        with_defaults(boxes)
        redraw()

    fill()
    boxes["model"].observe(lambda change: _quietly(boxes, redraw, fill), "value")
    _watch(boxes, redraw)
    layout = widgets.Layout(flex_flow="row wrap")
    return widgets.VBox([widgets.Box(list(boxes.values()), layout=layout), said, drawn])


def with_defaults(boxes: dict[str, Any]) -> None:
    """Fill the boxes of a request with the defaults of the model chosen; what it does not take is disabled."""
    request = get_spec(boxes["model"].value).request
    for name in FIELDS:
        boxes[name].disabled = not isinstance(request.get(name), int)
        boxes[name].value = 0 if boxes[name].disabled else request[name]


def _watch(boxes: dict[str, Any], redraw: Any) -> None:
    for name in ("gpu", *FIELDS):
        boxes[name].observe(redraw, "value")


def _quietly(boxes: dict[str, Any], redraw: Any, fill: Any) -> None:
    """Fill the boxes without a redraw for each."""
    for name in ("gpu", *FIELDS):
        boxes[name].unobserve(redraw, "value")
    fill()
    _watch(boxes, redraw)


def answer(model: str, gpu: str, asked: dict[str, int]) -> tuple[str, Figure]:
    """A line with time, memory, FLOP and lengths of a generation on a GPU, and the figure of its stages by category.

    Raises ValueError, with the line to show, for what the model or the GPU does not take.
    """
    table = count_batch(model, Request(**asked))
    timed, sheet = project(table, gpu=gpu), get_gpu(gpu)
    parts, memory, seen = breakdown(timed), summarize_memory(table, sheet), lengths(table)
    fits = "fits" if memory["fits"] else "does not fit"
    facts = [
        f"{amount(parts['time_s'].sum())} s projected on {gpu}",
        f"{amount(memory['peak_bytes'] / 1e9)} GB at the peak: {fits} {amount(sheet.memory_bytes / 1e9)} GB",
        f"{amount(parts['flop'].sum() / 1e12)} TFLOP",
        *([f"attention over {seen['q_min'].min():,} to {seen['kv_max'].max():,} tokens"] if len(seen) else []),
    ]
    return "; ".join(facts), _figure(parts[parts["time_s"] > 0], f"{model} on {gpu}")


def _figure(parts: Any, title: str) -> Figure:
    with plt.ioff():
        figure, ax = plt.subplots(figsize=(8.0, 1.4 + 0.4 * parts["stage"].nunique()), layout="constrained")
    rows = parts.rename(columns={"time_s": "value"}).assign(time_kind="projected")
    operator_breakdown(rows, label="stage", ax=ax)
    ax.set_title(f"Time by stage and category, projected: {title}", fontsize=10)
    plt.close(figure)
    return figure
