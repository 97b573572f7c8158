"""Figures of how far projections and counts are from measurements."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib import pyplot as plt

from mmchar.files import atomic_write
from mmchar.projection.validation import summary
from mmchar.runs.figures import figure_bytes
from mmchar.study.look import axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def plot_predicted_against_measured(table: "pd.DataFrame", *, ax: "Axes | None" = None) -> "Axes":
    """Predicted against measured seconds of a validated table, on one GPU and on several, both axes logarithmic.

    The line is perfect agreement; the band holds the middle 80 % of all errors.
    """
    ax = axes(ax, width=7.0, height=6.0)
    shown = table.assign(on=np.where(table["gpus"] > 1, "several GPUs", "one GPU"))
    sns.scatterplot(
        shown, x="latency_s", y="predicted_s", hue="model", style="on", palette="colorblind", s=28, alpha=0.8, ax=ax
    )
    overall = summary(table).iloc[-1]
    ends = np.array([table["latency_s"].min() / 1.5, table["latency_s"].max() * 1.5])
    low, high = (1 + overall[name] / 100 for name in ("low_latency", "high_latency"))
    ax.plot(ends, ends, color="0.3", linewidth=1, label="predicted = measured")
    ax.fill_between(ends, low * ends, high * ends, color="0.5", alpha=0.15, label="middle 80 % of errors")
    ax.set(xscale="log", yscale="log", xlim=ends, xlabel="measured by others (s)", ylabel="projected (s)")
    ax.set_title(f"{len(table)} measurements, median absolute error {overall['mdape_latency']:.1f} %")
    ax.legend(fontsize="small")
    return ax


def plot_measured_against_counted(
    data: "pd.DataFrame", *, counted: str, measured: str, hue: str, style: str, unit: str, ax: "Axes | None" = None
) -> "Axes":
    """Measured against counted amounts, both axes logarithmic, with the line of perfect agreement.

    Parameters
    ----------
    data : DataFrame
        Columns ``counted`` and ``measured``, positive and in ``unit``, and what colours and markers stand for.
    """
    ax = axes(ax, width=7.0, height=5.0)
    sns.scatterplot(data, x=counted, y=measured, hue=hue, style=style, palette="colorblind", s=44, alpha=0.8, ax=ax)
    values = data[[counted, measured]].astype(float)
    ends = np.array([values.min().min() / 1.5, values.max().max() * 1.5])
    ax.plot(ends, ends, color="0.3", linewidth=1, label="measured = counted", zorder=0)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=f"counted ({unit})", ylabel=f"measured ({unit})")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return ax


def save_predicted_against_measured(table: "pd.DataFrame", path: str | Path) -> Path:
    """The path of the figure, as PNG or SVG by suffix; the same table gives the same bytes."""
    path = Path(path)
    figure, ax = plt.subplots(figsize=(7.0, 6.0))
    plot_predicted_against_measured(table, ax=ax)
    content = figure_bytes(figure, path.suffix)
    plt.close(figure)
    return atomic_write(path, content)
