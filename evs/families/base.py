"""The protocols of a model family: its adapter, and the batch that the adapter reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from evs.families.spec import FamilySpec
from evs.sequence_parallel import SequenceGroup
from evs.types import DecoderInputs, Grid


class MediaBatch(Protocol):
    """Several prompts packed end to end, on the CPU. Media are in prompt order, grids in patches before merging.

    Pixels are uint8 levels, which the adapter normalises on the model's device, or already normalised floats.
    """

    @property
    def input_ids_N(self) -> Tensor: ...
    @property
    def labels_N(self) -> Tensor: ...
    @property
    def segment_N(self) -> Tensor: ...
    @property
    def pixel_values_videos(self) -> Tensor | None: ...
    @property
    def video_grid_thw_V3(self) -> Tensor: ...
    @property
    def second_per_grid_V(self) -> Tensor: ...
    @property
    def video_normal(self) -> tuple[Sequence[float], Sequence[float]] | None: ...  # mean and std of level / 255
    @property
    def pixel_values(self) -> Tensor | None: ...
    @property
    def image_normal(self) -> tuple[Sequence[float], Sequence[float]] | None: ...
    @property
    def image_grid_thw_I3(self) -> Tensor: ...
    @property
    def video_M(self) -> Tensor: ...  # [media] bool in prompt order: True for a video, False for an image


class Adapter(Protocol):
    """One per model family, duck-typed on the Hugging Face model object, which it neither owns nor changes.

    `embed_prompt`, `encode_media` and `decode` are a forward pass in three steps: a batch that is embedded and encoded
    once can be pruned at several rates and decoded at each. `pixels` and `encode_kept` are called only if the family's
    spec has `uint8_pixels`.
    """

    @property
    def model(self) -> Any: ...
    @property
    def spec(self) -> FamilySpec: ...
    @property
    def scheme(self) -> str: ...

    def placeholders(self, input_ids: Tensor) -> Tensor:
        """True on the placeholder tokens of images and videos."""
        ...

    def video_placeholders(self, input_ids: Tensor) -> Tensor | None:
        """True on the placeholder tokens of videos; None if they cannot be told from those of images."""
        ...

    def patches(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The media of a processor's output: pixels as rows of patches, and the [media, 3] grids in patches.

        The keys are `pixel_values_videos`, `video_grid_thw`, `pixel_values` and `image_grid_thw`; absent media are None
        or missing.
        """
        ...

    def grids(self, batch: MediaBatch) -> list[Grid]:
        """The merged grid of every video of the batch."""
        ...

    def embed_prompt(self, batch: MediaBatch, *, embed: bool = True) -> DecoderInputs:
        """The unpruned prompts. Rows of media hold the embeddings of their placeholder tokens.

        If `embed` is False, `embeds_ND` has shape [N, 0]: a sequence group embeds its slices after pruning.
        """
        ...

    def positions(self, batch: MediaBatch, *, pruned: bool = True) -> Tensor:
        """[P, N] positions of the unpruned prompts, each starting at 0, on the CPU.

        `pruned` says whether pruning follows: schemes that imitate a server differ from `preserve` only then.
        """
        ...

    def encode_media(self, batch: MediaBatch, embedded: DecoderInputs) -> tuple[DecoderInputs, Tensor]:
        """The prompts with their media encoded by the vision tower, and the [M, C] features of the video tokens."""
        ...

    def pixels(self, batch: MediaBatch) -> Tensor:
        """[M, C] uint8 pixels of the videos' tokens before the tower, on the CPU."""
        ...

    def encode_kept(self, batch: MediaBatch, embedded: DecoderInputs, keep_N: Tensor, depth: int) -> DecoderInputs:
        """The kept tokens of the prompts, encoded by a tower that drops the others before block `depth`."""
        ...

    def tower(self, batch: MediaBatch, kept_U: Tensor | None = None, depth: int = 0) -> tuple[Tensor, ...]:
        """(merged rows of all media, images first; the same rows of every deepstack level), on the model's device.

        With a [tokens] mask on the CPU, given only if the spec has `uint8_pixels`, only those of kept tokens; the
        others are dropped before block `depth`. Every call runs every module of the tower once, with or without media:
        under ZeRO 3 all ranks must call them equally often.
        """
        ...

    def decode(self, x: DecoderInputs, group: SequenceGroup | None = None) -> Tensor:
        """[N, D] hidden states after the final norm, in the packed order of `x`.

        With a `group`, only those of this rank's slice. No group is given if the language model has recurrent layers.
        """
        ...


def merged_grids(grid_thw: Tensor, merge: int) -> list[Grid]:
    """Grids in tokens of grids in patches, where a token is `merge` x `merge` patches."""
    return [Grid(t, h // merge, w // merge) for t, h, w in grid_thw.tolist()]


def media_tokens(batch: MediaBatch, merge: int) -> Tensor:
    """[media] tokens of every video and image, in prompt order, where a token is `merge` x `merge` patches."""
    tokens = torch.empty(len(batch.video_M), dtype=torch.long)
    tokens[batch.video_M] = batch.video_grid_thw_V3.prod(1) // merge**2
    tokens[~batch.video_M] = batch.image_grid_thw_I3.prod(1) // merge**2
    return tokens


def input_device(model: Any) -> torch.device:
    """Where prompts are embedded. Between calls, weights that accelerate offloads are on `meta`."""
    embedding = model.get_input_embeddings()
    device = getattr(vars(embedding).get("_hf_hook"), "execution_device", None)
    return embedding.weight.device if device is None else torch.device(device)


def embed_tokens(
    model: Any, batch: MediaBatch, positions_PN: Tensor, visual_N: Tensor, tokens_M: Tensor, *, embed: bool = True
) -> DecoderInputs:
    """The result of `Adapter.embed_prompt`, on the model's device.

    `visual_N` is True on the placeholders of media, which take `tokens_M` tokens in prompt order. ValueError if the
    numbers of placeholders and tokens differ.
    """
    ids_N = batch.input_ids_N.to(input_device(model))
    embeds_ND = model.get_input_embeddings()(ids_N) if embed else torch.empty(len(ids_N), 0, device=ids_N.device)
    device = embeds_ND.device
    return DecoderInputs(
        embeds_ND=embeds_ND,
        positions_PN=positions_PN.to(device),
        segment_N=batch.segment_N.to(device),
        labels_N=batch.labels_N.to(device),
        video_N=video_index(batch, visual_N, tokens_M).to(device),
        visual_N=visual_N.to(device),
    )


def filled(embedded: DecoderInputs, levels: Sequence[Tensor]) -> DecoderInputs:
    """The prompts with the rows of the vision tower scattered to the visual tokens."""
    order, embeds_ND = rows_in_prompt_order(embedded), embedded.embeds_ND
    rows, *deepstack = (level[order].to(embeds_ND.dtype) for level in levels)
    embeds_ND = embeds_ND.masked_scatter(embedded.visual_N[:, None], rows)
    if not len(order):  # the tower encoded a blank patch, so that every rank calls the same modules
        embeds_ND = embeds_ND + 0 * sum(level.sum() for level in levels)
    return replace(embedded, embeds_ND=embeds_ND, deepstack=tuple(deepstack))


def rows_in_prompt_order(embedded: DecoderInputs) -> Tensor:
    """[M] for every visual token in order, its row in (all images' rows, then all videos' rows)."""
    video_M = embedded.video_N[embedded.visual_N] >= 0
    return torch.where(video_M, (~video_M).sum() + video_M.cumsum(0), (~video_M).cumsum(0)) - 1


def video_index(batch: MediaBatch, visual_N: Tensor, tokens_M: Tensor) -> Tensor:
    """[N] index of the video that a token belongs to, -1 for others; the media have `tokens_M` tokens, in prompt order.

    Raises ValueError if the placeholders `visual_N` are not as many.
    """
    if int(tokens_M.sum()) != int(visual_N.sum()):
        raise ValueError(
            f"the prompts have {int(visual_N.sum())} placeholders and their {len(tokens_M)} videos and images take "
            f"{int(tokens_M.sum())}: remove a mark or add a file"
        )
    video_M = (batch.video_M.cumsum(0) - 1).where(batch.video_M, -1)
    index_N = torch.full_like(batch.input_ids_N, -1)
    index_N[visual_N] = video_M.repeat_interleave(tokens_M)
    return index_N
