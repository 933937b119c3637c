"""Nemotron Omni."""

from evs.families.nemotron.spec import SPECS

__all__ = ["SPECS"]
