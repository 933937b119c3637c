"""GLM-4.1V and GLM-4.5V."""

from evs.families.glm.spec import SPECS

__all__ = ["SPECS"]
