"""The picture of a leaderboard: test accuracy against MACs, all methods, budgets and seeds."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tas_ray.results import write_atomically

# Colours of Okabe and Ito, told apart by colour-blind readers too; the first methods always keep theirs.
_FIRST_METHODS = ("tas", "uniform", "random")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1.5, 1, 1.5)))
_GREY = "#555555"


def draw(df: pd.DataFrame, path: str | Path) -> Path:
    """Writes the accuracy-against-MACs picture of a leaderboard as PNG and returns its path.

    One panel a space and dataset. Every network is a faint dot; a line joins each method's means, one a
    budget, taken over all its networks there. Several runs keep lines of their own. Networks without
    a budget are the dense reference. Raises ValueError when df has no row.
    """
    if df.empty:
        raise ValueError("there is nothing to draw: the leaderboard has no row, check the filter it went through")
    path = Path(path)
    buffer = io.BytesIO()
    _figure(df).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return path


def _figure(df: pd.DataFrame) -> Figure:
    groups = list(df.groupby(["space", "dataset"]))
    columns = 2 if len(groups) == 4 else min(len(groups), 3)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(7.4, 5.0) if len(groups) == 1 else (5.2 * columns, 4.1 * rows + 0.5))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08, wspace=0.03, hspace=0.04)
    present = sorted(set(df.loc[df["budget_macs"].notna(), "method"]))
    methods = [*_FIRST_METHODS, *(name for name in present if name not in _FIRST_METHODS)]
    runs = sorted(set(df["run"]))
    for index, ((space, dataset), group) in enumerate(groups):
        ax = figure.add_subplot(rows, columns, index + 1)
        _draw_methods(ax, group, methods, runs)
        _draw_dense(ax, group, runs)
        _tidy(ax)
        _draw_budgets(ax, group)
        ax.set_title(f"{space} on {dataset}", fontsize=11, fontweight="bold", pad=20)
    _add_legend(figure, df)
    return figure


def _draw_methods(ax: Axes, df: pd.DataFrame, methods: list[str], runs: list[str]) -> None:
    pruned = df[df["budget_macs"].notna()]
    order = sorted(pruned.groupby(["method", "run"]), key=lambda group: methods.index(str(group[0][0])))
    for (method, run), rows in order:
        number = methods.index(str(method))
        line = _LINES[runs.index(str(run)) % len(_LINES)]
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        x, y = _points(rows["macs"], rows["test_accuracy"])
        ax.scatter(x, y, s=22, color=colour, marker=marker, alpha=0.35, linewidths=0, zorder=3)
        means = rows.groupby("budget_macs")[["macs", "test_accuracy"]].mean().sort_values("macs")
        x, y = _points(means["macs"], means["test_accuracy"])
        ax.plot(
            x,
            y,
            color=colour,
            linestyle=line,
            linewidth=1.7,
            marker=marker,
            markersize=8,
            markeredgecolor="white",
            markeredgewidth=0.9,
            zorder=4,
            label=_label(str(method), str(run), runs),
        )


def _points(macs: pd.Series, accuracy: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in the picture: MACs in millions, accuracy in percent."""
    return macs.to_numpy(dtype=float) / 1e6, accuracy.to_numpy(dtype=float) * 100


def _label(method: str, run: str, runs: list[str]) -> str:
    return method if len(runs) == 1 else f"{method} ({run})"


def _draw_dense(ax: Axes, df: pd.DataFrame, runs: list[str]) -> None:
    """Each run's dense network from its own rows, or, where there are none, from what the pruned ones say."""
    for run, rows in df.groupby("run"):
        dense = rows[rows["budget_macs"].isna()]
        known = rows[rows["dense_accuracy"].notna()]
        if not dense.empty:
            x, y = _points(dense["macs"], dense["test_accuracy"])
        elif not known.empty:
            x, y = _points(known["macs"] / known["macs_ratio"], known["dense_accuracy"])
        else:
            continue
        line = _LINES[(runs.index(str(run)) + 1) % len(_LINES)]
        ax.axhline(y.mean(), color=_GREY, linestyle=line, linewidth=1.1, zorder=2)
        ax.plot(
            [x.mean()],
            [y.mean()],
            color=_GREY,
            linestyle=line,
            linewidth=1.1,
            marker="*",
            markersize=14,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=5,
            label=_label("dense", str(run), runs),
        )


def _tidy(ax: Axes) -> None:
    ax.margins(x=0.06, y=0.09)
    ax.set_xlabel("MACs of one image (millions)")
    ax.set_ylabel("test accuracy (%)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 2.5, 5, 10]))
    ax.ticklabel_format(useOffset=False, style="plain")
    ax.grid(visible=True, axis="y", color="#E3E3E3", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=9)


def _draw_budgets(ax: Axes, df: pd.DataFrame) -> None:
    """A thin vertical line a budget, labelled with its share of the dense MACs where there is room."""
    left, right = ax.get_xlim()
    last_label = -np.inf
    for _, rows in df[df["budget_macs"].notna()].groupby("budget_macs"):
        x = float(rows["budget_macs"].iloc[0]) / 1e6
        ax.axvline(
            x,
            color="#A8A8A8",
            linestyle=(0, (1, 2)),
            linewidth=1.0,
            zorder=1,
            label="budget (% of dense)",
        )
        if x - last_label >= 0.085 * (right - left):
            ratio = float(rows["budget_ratio"].iloc[0])
            ax.annotate(
                f"{100 * ratio:.3g} %",
                (x, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=_GREY,
            )
            last_label = x


def _add_legend(figure: Figure, df: pd.DataFrame) -> None:
    """One legend below all panels, in as many columns as its longest entry lets fit."""
    entries: dict[str, Artist] = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    if df.duplicated(["space", "dataset", "run", "method", "budget_macs"]).any():
        entries["one network"] = Line2D([], [], color=_GREY, alpha=0.45, marker="o", markersize=5, linestyle="")
    labels = sorted(entries, key=lambda label: label.startswith(("dense", "one network", "budget")))
    longest = max(len(label) for label in labels)
    columns = int(figure.get_figwidth() * 14 / (longest + 8))
    figure.legend(
        [entries[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=max(1, min(columns, 6)),
        frameon=False,
        fontsize=9,
        handlelength=2.8,
    )
