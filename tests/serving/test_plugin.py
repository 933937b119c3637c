from __future__ import annotations

import pytest

from evs.families.servers import VLLM_VERSIONS
from evs.serving.vllm import check_version, register


@pytest.mark.parametrize("version", [*VLLM_VERSIONS, f"{VLLM_VERSIONS[0]}+cpu"])
def test_the_versions_it_was_written_for_are_known(version) -> None:
    check_version(version)


def test_any_other_version_is_refused_in_one_line_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"does not know vLLM 0\.34\.0: install .* EVS_VLLM_PLUGIN=0") as error:
        check_version("0.34.0")
    assert "\n" not in str(error.value)


def test_one_variable_turns_it_off(monkeypatch) -> None:
    monkeypatch.setenv("EVS_VLLM_PLUGIN", "0")
    register()  # would need vLLM otherwise
