from __future__ import annotations

from train.reports.curve import Curve, figure


def test_eight_curves_differ_in_colour_or_marker():
    curves = [Curve(f"run {i}", {0.0: 1.0, 0.9: 0.5}) for i in range(8)]
    lines = figure(curves, "accuracy").axes[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 8
