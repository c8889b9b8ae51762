"""A concept's words: from `<rex>` in a prompt to one text embedding per cross-attention layer.

The user writes `<rex>`; the text encoder reads two tokens, `<rex-1> <rex-2>` (ED-LoRA's residual and class
word; paper, section 5). A word is one embedding (single) or one per cross-attention layer (layer-wise, 16
in SD 1.x). The base's embedding table is never resized or written: the words' rows are put in while
the prompt is encoded.

A layer-wise encoding is (batch, layers * tokens, width), the layers one after the other along the
sequence, so that a stock pipeline can carry it; `layerwise(unet)` makes each cross-attention layer read
its own part. A prompt of any length is read in chunks of 75 tokens, one after the other inside each part.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spectral_diffusion.errors import InputError, NameTaken
from spectral_diffusion.prompts import Piece, Token, chunks, parse

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


def named(prompt: str) -> list[str]:
    """The concepts a prompt names, in order, each once."""
    return list(dict.fromkeys(_CONCEPT.findall(prompt)))


def with_article(word: str) -> str:
    """`dog` -> `a dog`, `owl` -> `an owl`."""
    return f"{'an' if word[0] in 'aeio' else 'a'} {word}"


def spoken(prompt: str, classes: Mapping[str, str]) -> str:
    """The prompt in plain words, for measuring: `<rex>` -> `a dog` (`classes` maps name to class word)."""

    def plain(match: re.Match[str]) -> str:
        return with_article(classes.get(match[1], match[1]))

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

    def tokens_in(self, prompt: str, weighted: bool = False) -> list[list[Token]]:
        """The chunks of a prompt: see `prompts.chunks`. `weighted`: read its brackets and BREAKs."""
        sections = parse(prompt) if weighted else [[Piece(prompt, 1.0)]]
        size = self.tokenizer.model_max_length - 2  # without start and end
        return [chunk for section in sections for chunk in chunks(self._tokens(section), size)]

    def own_tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Which tokens (batch, 77) of the prompts' first chunks are of these words."""
        ids, _ = self._tensors([self.tokens_in(prompt)[0] for prompt in prompts])
        return ids >= self.first

    def _tokens(self, section: Sequence[Piece]) -> list[Token]:
        comma = self._plain(",")
        starts = {self.first + i for i, token in enumerate(self.tokens) if token.endswith("-1>")}
        return [
            Token(id, piece.weight, joined=id >= self.first and id not in starts, comma=[id] == comma)
            for piece in section
            for id in self._plain(piece.text)
        ]

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def encode(
        self,
        text_encoder: CLIPTextModel,
        prompts: Sequence[str],
        weighted: bool = False,
        clip_skip: int = 1,
        begin_only: bool = False,
    ) -> torch.Tensor:
        """(batch, tokens, width), or (batch, layers * tokens, width) if the words are layer-wise.

        `prompts` are expanded already. `tokens` is the tokenizer's length (77) for each chunk of the longest
        prompt; shorter ones are filled up with empty chunks, as in A1111. `weighted`: brackets and BREAK
        mean what `prompts.parse` says. `clip_skip` n: the text encoder's n-th layer from the end, behind its
        final norm. `begin_only`: of each prompt the first chunk alone is read, so that a prompt reads the same
        whatever it is encoded with. Gradients flow into `table` and into adapters of `text_encoder`.
        """
        found = [self.tokens_in(prompt, weighted)[: 1 if begin_only else None] for prompt in prompts]
        most = max(map(len, found))
        padded = [chunk for parts in found for chunk in [*parts, *([[]] * (most - len(parts)))]]
        ids, weights = (part.to(text_encoder.device) for part in self._tensors(padded))
        hidden = emphasised(self._read(text_encoder, ids, clip_skip), weights)
        return hidden.unflatten(0, (len(prompts), most)).transpose(1, 2).flatten(1, 3)

    def _tensors(self, parts: Sequence[Sequence[Token]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and weights (chunks, 77), with start, end and padding, which weigh 1."""
        tokenizer, length = self.tokenizer, self.tokenizer.model_max_length
        ids = torch.full((len(parts), length), tokenizer.pad_token_id)
        weights = torch.ones(len(parts), length)
        for i, part in enumerate(parts):
            line = [tokenizer.bos_token_id, *(token.id for token in part), tokenizer.eos_token_id]
            ids[i, : len(line)] = torch.tensor(line)
            weights[i, 1 : len(part) + 1] = torch.tensor([token.weight for token in part])
        return ids, weights

    def _read(self, text_encoder: CLIPTextModel, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
        """(chunks, layers, 77, width)."""
        if self.layers == 1:
            layer = torch.zeros(len(ids), dtype=torch.long)
            return self._hidden(text_encoder, ids, layer, clip_skip)[:, None]
        ours = (ids >= self.first).any(dim=1)
        # chunks without our words read the same in every layer: encode them once
        plain = iter(self._hidden(text_encoder, ids[~ours], None, clip_skip) if (~ours).any() else ())
        layer = torch.arange(self.layers).repeat(int(ours.sum()))
        repeated = ids[ours].repeat_interleave(self.layers, dim=0)
        special = iter(
            self._hidden(text_encoder, repeated, layer, clip_skip).unflatten(0, (-1, self.layers))
            if ours.any()
            else ()
        )
        return torch.stack(
            [next(special) if mine else next(plain).expand(self.layers, -1, -1) for mine in ours.tolist()]
        )

    def _hidden(
        self, text_encoder: CLIPTextModel, ids: torch.Tensor, layer: torch.Tensor | None, clip_skip: int
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
            return _final(text_encoder, ids.clamp(max=self.first - 1), clip_skip)
        finally:
            hook.remove()


def _final(text_encoder: CLIPTextModel, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
    """The states of the `clip_skip`-th layer from the end, normed; diffusers' own clip skip crashes on SD 1.x."""
    if clip_skip == 1:
        return text_encoder(ids).last_hidden_state
    encoder = getattr(text_encoder, "text_model", text_encoder)
    if not 1 <= clip_skip <= (count := len(encoder.encoder.layers)):
        raise InputError(f"Clip skip must be 1 to {count} with this base's text encoder, not {clip_skip}.")
    kept: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        kept.append(output if torch.is_tensor(output) else output[0])

    hook = encoder.encoder.layers[-clip_skip].register_forward_hook(keep)
    try:
        text_encoder(ids)
    finally:
        hook.remove()
    return encoder.final_layer_norm(kept[0])


def emphasised(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Hidden states (chunks, layers, tokens, width) times their tokens' weights (chunks, tokens).

    As in A1111 ("Original" emphasis) the mean of a chunk is restored afterwards, so that weights move
    emphasis rather than contrast. A1111 takes the mean over a batch, this over each chunk and layer:
    a prompt reads the same whatever it is drawn with. Where the mean would have to change by more than a
    factor of 2 it is too near zero to mean anything, and is left alone. Weights of 1 change no bit.
    """
    if (weights == 1).all():
        return hidden
    weighed = hidden * weights[:, None, :, None].to(hidden.dtype)
    ratio = hidden.float().mean((2, 3), keepdim=True) / weighed.float().mean((2, 3), keepdim=True)
    sane = (ratio > 0.5) & (ratio < 2)
    return weighed * torch.where(sane, ratio, torch.ones_like(ratio)).to(hidden.dtype)


def initial_words(
    name: str, class_word: str, tokenizer: CLIPTokenizer, embedding: nn.Embedding, layers: int, seed: int
) -> dict[str, torch.Tensor]:
    """token -> (layers, width) before training: word 1 random, word 2 the class word (paper, section 5).

    Word 1 is N(0, s^2) with s the base's own spread of embeddings (0.013 in SD 1.x). A class word of
    several tokens starts from their mean.
    """
    table = embedding.weight.detach().cpu().float()  # where random numbers are the same for everybody
    ids = tokenizer(class_word, add_special_tokens=False).input_ids
    if not ids:
        raise InputError(
            "The class word is empty: give the plain word for what the photos show, such as 'dog'."
        )
    noise = torch.randn(layers, table.shape[1], generator=torch.Generator().manual_seed(seed))
    first, second = tokens_of(name)
    return {first: noise * table.std(), second: table[ids].mean(0).expand(layers, -1).clone()}
