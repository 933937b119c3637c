from __future__ import annotations

from typing import Any

import pytest

from tests.evs.models import BUILDERS, MIXED, Prompts, prompts, tiny_model


@pytest.fixture(params=BUILDERS)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> Any:
    return tiny_model(family)


@pytest.fixture
def batch(family) -> Prompts:
    return prompts(family, MIXED)
