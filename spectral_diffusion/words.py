"""A concept's words: from `<rex>` in a prompt to one text embedding per cross-attention layer.

The user writes `<rex>`; the text encoder reads two tokens, `<rex-1> <rex-2>` (ED-LoRA's residual and class
word; paper, section 5). A word is one embedding (single) or one per cross-attention layer (layer-wise, 16
in SD 1.x). The base's embedding table is never resized or written: the words' rows are put in while
the prompt is encoded.

A layer-wise encoding is (batch, layers * tokens, width), the layers one after the other along the
sequence, so that a stock pipeline can carry it; `layerwise(unet)` makes each cross-attention layer read
its own part.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from spectral_diffusion.errors import InputError, NameTaken

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_CONCEPT = re.compile(r"<([A-Za-z0-9_-]+)>")


def tokens_of(name: str) -> tuple[str, str]:
    """The two tokens behind `<name>`."""
    return f"<{name}-1>", f"<{name}-2>"


def expand(prompt: str, names: Iterable[str]) -> str:
    """`<rex>` -> `<rex-1> <rex-2>`. Raises InputError for a concept that is not among `names`."""
    known = sorted(names)

    def tokens(match: re.Match[str]) -> str:
        if match[1] not in known:
            loaded = ", ".join(f"<{name}>" for name in known) or "none"
            raise InputError(
                f"The prompt names <{match[1]}>, which is not loaded; loaded concepts: {loaded}."
            )
        return " ".join(tokens_of(match[1]))

    return _CONCEPT.sub(tokens, prompt)


def spoken(prompt: str, classes: Mapping[str, str]) -> str:
    """The prompt in plain words, for measuring: `<rex>` -> `a dog` (`classes` maps name to class word)."""

    def plain(match: re.Match[str]) -> str:
        word = classes.get(match[1], match[1])
        return f"{'an' if word[0] in 'aeio' else 'a'} {word}"

    return _CONCEPT.sub(plain, prompt)


def check_words(name: str, class_word: str, tokenizer: CLIPTokenizer) -> None:
    """Raises NameTaken if a token of `<name>` is in the vocabulary already, or the name is the class itself.

    A name that is also a plain word is fine: `<rex>` is another token than `rex`.
    """
    vocabulary = tokenizer.get_vocab()
    if clash := [word for word in (f"<{name}>", *tokens_of(name)) if word in vocabulary]:
        raise NameTaken(f"{clash[0]} is already a word of this base's vocabulary: pick another name.")
    if name in class_word.lower().split():
        raise NameTaken(f"{name!r} is already the class word: pick a name of its own, such as my_{name}.")


def cross_attention_layers(unet: UNet2DConditionModel) -> list[nn.Module]:
    """The UNet's cross-attention modules in the order of the forward pass: down, mid, up."""
    blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
    return [module for block in blocks for path, module in block.named_modules() if path.endswith("attn2")]


@contextmanager
def layerwise(unet: UNet2DConditionModel, layers: int) -> Iterator[None]:
    """While active, cross-attention layer i reads part i of a layer-wise encoding. `layers` 1: a no-op."""

    def pick(index: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            text = kwargs["encoder_hidden_states"]
            return args, {**kwargs, "encoder_hidden_states": text.chunk(layers, dim=1)[index]}

        return hook

    modules = cross_attention_layers(unet) if layers > 1 else []
    if modules and len(modules) != layers:
        raise InputError(
            f"The words have {layers} embeddings, but this base has {len(modules)} cross-attention layers."
        )
    hooks = [m.register_forward_pre_hook(pick(i), with_kwargs=True) for i, m in enumerate(modules)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Words(nn.Module):
    """The embeddings of some concepts' tokens, and prompts encoded with them.

    `table` is a float parameter (layers, tokens, width); `layers` is 1 or the number of cross-attention
    layers. Single words in a layer-wise table are repeated.
    """

    def __init__(self, rows: Mapping[str, torch.Tensor], tokenizer: CLIPTokenizer) -> None:
        """`rows`: token -> (1 or layers, width)."""
        super().__init__()
        self.tokens = list(rows)
        self.layers = max((len(row) for row in rows.values()), default=1)
        self.tokenizer = copy.deepcopy(tokenizer)
        self.first = len(self.tokenizer)  # the id of the first new token
        self.tokenizer.add_tokens(self.tokens)
        if len(self.tokenizer) != self.first + len(self.tokens):
            raise NameTaken(f"One of {', '.join(self.tokens)} is already a word of this base.")
        if rows:
            stacked = torch.stack([row.float().expand(self.layers, -1) for row in rows.values()], dim=1)
            self.table = nn.Parameter(stacked)

    def rows(self) -> dict[str, torch.Tensor]:
        """token -> (layers, width), detached, on the CPU."""
        return {token: self.table[:, i].detach().cpu().clone() for i, token in enumerate(self.tokens)}

    def encode(self, text_encoder: CLIPTextModel, prompts: Sequence[str]) -> torch.Tensor:
        """(batch, tokens, width), or (batch, layers * tokens, width) if the words are layer-wise.

        `prompts` are expanded already. Gradients flow into `table` and into adapters of `text_encoder`.
        """
        ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids.to(text_encoder.device)
        if self.layers == 1:
            return self._hidden(text_encoder, ids, torch.zeros(len(ids), dtype=torch.long))
        ours = (ids >= self.first).any(dim=1)
        count, length = ids.shape
        # prompts without our words read the same in every layer: encode them once
        plain = self._hidden(text_encoder, ids[~ours], None) if (~ours).any() else None
        layer = torch.arange(self.layers).repeat(int(ours.sum()))
        special = (
            self._hidden(text_encoder, ids[ours].repeat_interleave(self.layers, dim=0), layer)
            if ours.any()
            else None
        )
        width = (plain if special is None else special).shape[-1]
        parts = [
            special[(k := int(ours[:i].sum())) * self.layers : (k + 1) * self.layers].reshape(-1, width)
            if ours[i]
            else plain[int((~ours[:i]).sum())].repeat(self.layers, 1)
            for i in range(count)
        ]
        return torch.stack(parts).reshape(count, self.layers * length, width)

    def _hidden(
        self, text_encoder: CLIPTextModel, ids: torch.Tensor, layer: torch.Tensor | None
    ) -> torch.Tensor:
        """Final hidden states (n, tokens, width); `layer` (n) tells which row of `table` each prompt reads."""
        new = ids - self.first
        mine = new >= 0

        def put(module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            if not mine.any():
                return output
            which = layer.to(ids.device)[:, None].expand_as(new)[mine]
            return output.index_put((mine,), self.table[which, new[mine]].to(output.dtype))

        hook = text_encoder.get_input_embeddings().register_forward_hook(put)
        try:
            return text_encoder(ids.clamp(max=self.first - 1)).last_hidden_state
        finally:
            hook.remove()


def initial_words(
    name: str, class_word: str, tokenizer: CLIPTokenizer, embedding: nn.Embedding, layers: int, seed: int
) -> dict[str, torch.Tensor]:
    """token -> (layers, width) before training: word 1 random, word 2 the class word (paper, section 5).

    Word 1 is N(0, s^2) with s the base's own spread of embeddings (0.013 in SD 1.x). A class word of
    several tokens starts from their mean.
    """
    table = embedding.weight.detach().float()
    ids = tokenizer(class_word, add_special_tokens=False).input_ids
    if not ids:
        raise InputError(
            "The class word is empty: give the plain word for what the photos show, such as 'dog'."
        )
    noise = torch.randn(layers, table.shape[1], generator=torch.Generator().manual_seed(seed))
    first, second = tokens_of(name)
    return {first: noise * table.std(), second: table[ids].mean(0).expand(layers, -1).clone()}
