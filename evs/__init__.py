"""Efficient Video Sampling as pure functions: score, select and prune video tokens, and keep their positions."""

from evs.methods.evs import FrameDelta
from evs.pruning import keep_mask, prune
from evs.rates import Beta, Choice, Constant, Curriculum, FrameBeta, Mixture, Uniform, draw
from evs.selection import keep_count, select
from evs.types import DecoderInputs, Grid

__all__ = [
    "Beta",
    "Choice",
    "Constant",
    "Curriculum",
    "DecoderInputs",
    "FrameBeta",
    "FrameDelta",
    "Grid",
    "Mixture",
    "Uniform",
    "draw",
    "keep_count",
    "keep_mask",
    "prune",
    "select",
]
