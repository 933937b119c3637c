from __future__ import annotations

import pytest

from train.reports import marked


def test_a_part_is_put_between_its_marks_again_and_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- peers: begin -->\nold\n<!-- peers: end -->\nb\n")
    marked.put(page, "peers", "new")
    marked.put(page, "peers", "newer")
    assert page.read_text() == "a\n<!-- peers: begin -->\nnewer\n<!-- peers: end -->\nb\n"


def test_a_page_without_the_marks_is_named(tmp_path):
    with pytest.raises(ValueError, match="has no line '<!-- peers: begin -->': add it and"):
        marked.check(tmp_path / "page.md", "peers")
