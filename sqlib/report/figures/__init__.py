"""Figures: functions that take data and return a matplotlib Figure, and show nothing.

Here belongs what draws; what it draws is gathered elsewhere (`sqlib.report.runs_table`, `sqlib.report.quality_table`).
"""

# ruff: noqa: F401
from sqlib.report.figures.comparison import accuracy_against, agreement, by_setup, pareto, trade_off
from sqlib.report.figures.curves import deletion_curves, fill_curves, roar_curves, sanity_depths
from sqlib.report.figures.data import class_means, first_of_each_class, pixel_values
from sqlib.report.figures.inside import activation_levels, rounding_errors, unit_shares, weight_levels
from sqlib.report.figures.saliency import film_frames, film_strip, map_grid, saliency_methods
from sqlib.report.figures.style import FAINT, INK, SETUP_STYLE, STYLE, WIDTH, own_look, readable, setup_style
from sqlib.report.figures.sweeps import sweep_panels
from sqlib.report.figures.training import clip_paths, training_curves
from sqlib.report.figures.verdicts import VERDICTS, forest
