from __future__ import annotations

from train.reports.curve import Curve, figure


def test_eight_curves_differ_in_colour_or_marker():
    curves = [Curve(f"run {i}", {0.0: 1.0, 0.9: 0.5}) for i in range(8)]
    lines = figure(curves, "accuracy").axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 8


def test_a_name_is_shown_as_it_is_written():
    """Matplotlib leaves _a out of the legend and sets $b$ as mathematics."""
    axes = figure([Curve("_a $b$", {0.0: 1.0}), Curve("c", {0.0: 1.0})], "$d$").axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [r" _a \$b\$", "c"] and axes.get_title() == r"\$d\$"
