"""A document of the local task: {"video": path, "question": text with its lettered options, "answer": letter}."""

from __future__ import annotations

from typing import Any


def videos(document: dict[str, Any]) -> list[str]:
    return [document["video"]]


def question(document: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return document["question"]


def grade(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"accuracy": float(results[0].strip() == document["answer"])}
