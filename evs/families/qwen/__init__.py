"""Qwen2.5-VL, Qwen3-VL and Qwen3.5."""

from evs.families.qwen.spec import SPECS

__all__ = ["SPECS"]
