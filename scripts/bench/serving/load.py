"""Requests about videos, sent to a server by several clients at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

LEAVE_SECONDS = 0.2  # after which a client of the faulty load disconnects


@dataclass(frozen=True)
class Request:
    video: Path
    question: str
    tokens: int  # of the answer
    leaves: bool = False  # the client disconnects, likely while the video is processed or encoded


@dataclass(frozen=True)
class Outcome:
    first_seconds: float = 0.0  # until the first token
    prompt_tokens: int = 0
    failure: str = ""


def send(url: str, requests: Sequence[Request], concurrency: int, timeout: float) -> dict[str, Any]:
    """Figures of the requests, of which `concurrency` are under way at a time; failed ones are counted by reason."""
    begin = time.perf_counter()
    outcomes = asyncio.run(_send(url, requests, concurrency, timeout))
    seconds = time.perf_counter() - begin
    answered = [outcome for outcome in outcomes if not outcome.failure]
    first = [outcome.first_seconds for outcome in answered] or [float("nan")]
    return {
        "seconds": seconds,
        "answered": len(answered),
        "requests_per_s": len(answered) / seconds,
        "first_token_median_s": float(np.median(first)),
        "first_token_p99_s": float(np.percentile(first, 99)),
        "prompt_tokens_per_s": sum(outcome.prompt_tokens for outcome in answered) / seconds,
        "failures": dict(Counter(outcome.failure for outcome in outcomes if outcome.failure)),
    }


async def _send(url: str, requests: Sequence[Request], concurrency: int, timeout: float) -> list[Outcome]:
    turns = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=timeout) as client:

        async def one(request: Request) -> Outcome:
            async with turns:
                try:
                    return await asyncio.wait_for(_ask(client, request), LEAVE_SECONDS if request.leaves else None)
                except asyncio.TimeoutError:
                    return Outcome(failure="disconnected")
                except httpx.HTTPError as error:
                    return Outcome(failure=type(error).__name__)

        return await asyncio.gather(*map(one, requests))


async def _ask(client: httpx.AsyncClient, request: Request) -> Outcome:
    video = {"type": "video_url", "video_url": {"url": request.video.as_uri()}}
    content = [video, {"type": "text", "text": request.question}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": request.tokens, "temperature": 0}
    body |= {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    begin, first, usage = time.perf_counter(), 0.0, {"prompt_tokens": 0}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            return Outcome(failure=f"status {response.status_code}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return Outcome(failure="error in the stream")
            if not first and event["choices"] and event["choices"][0]["delta"].get("content") is not None:
                first = time.perf_counter() - begin
            usage = event.get("usage") or usage
    return Outcome(first, usage["prompt_tokens"])
