"""Replace attributes of single modules, such as their forwards, and put the stock ones back."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn

PATCHES = "_evs_patches"  # attribute of a module: name -> (our value, *stock value if the instance had one)
HOOKED = "_old_forward"  # under this name a hook of accelerate (device_map) keeps the forward that it calls


def patch_forward(module: nn.Module, forward: Any) -> None:
    """Let the module run `forward`. A hook that accelerate has put on the module stays, and calls `forward`."""
    patch(module, HOOKED if "_hf_hook" in vars(module) else "forward", forward)


def patch(module: nn.Module, name: str, value: Any) -> None:
    """Set an attribute of this instance. Patching it again keeps the first stock value."""
    own, patches = vars(module), vars(module).setdefault(PATCHES, {})
    stock = patches[name][1:] if name in patches else tuple(own[name] for _ in range(name in own))
    own[name], patches[name] = value, (value, *stock)


def unpatch(model: nn.Module) -> None:
    """Put the stock attributes of the model and its submodules back, but for those that somebody else has set since."""
    for module in model.modules():
        for name, (value, *stock) in vars(module).pop(PATCHES, {}).items():
            # A hook that was added or removed since has moved the forward.
            for place in ("forward", HOOKED) if name in ("forward", HOOKED) else (name,):
                if vars(module).get(place) is value:
                    _put_back(module, place, stock)


def _put_back(module: nn.Module, name: str, stock: list[Any]) -> None:
    if not stock and name == HOOKED:
        stock = [MethodType(type(module).forward, module)]
    if stock:
        vars(module)[name] = stock[0]
    else:
        del vars(module)[name]
