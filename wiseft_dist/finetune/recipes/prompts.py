"""Texts become tokens in the loader's processes, where the tokenizer is made once and what repeats is kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_dist.data.batch import ClassLabel, caption
from wiseft_dist.data.shards import Sample
from wiseft_dist.data.vocabulary import Vocabulary, prompt
from wiseft_dist.models.classifier import read_vocabulary
from wiseft_dist.models.clip import read_config, tokenizer_of
from wiseft_dist.models.short_texts import reads_short_texts, without_padding


@dataclass(frozen=True)
class CaptionTokens:
    """The caption of a sample, for theta_0's text tower."""

    zero_shot: Path

    def __call__(self, sample: Sample, random: np.random.Generator) -> Any:
        """Tokens int64 ``[width]``, without padding where the text tower can do without it."""
        return _caption_tokens(self.zero_shot, caption(sample))


@dataclass(frozen=True)
class PromptTokens:
    """The prompt of a sample's class in a template that the sample's own random numbers choose."""

    zero_shot: Path
    num_classes: int
    num_templates: int

    def __call__(self, sample: Sample, random: np.random.Generator) -> Any:
        """Tokens int64 ``[width]``, without padding where the text tower can do without it."""
        label = ClassLabel(self.num_classes)(sample, random)
        return prompt_tokens(self.zero_shot, label, int(random.integers(self.num_templates)))


@cache
def prompt_tokens(zero_shot: Path, label: int, template: int) -> Any:
    """Tokens of one class in one template; there are no more than classes times templates."""
    vocabulary = _vocabulary(zero_shot)
    return _tokens(zero_shot, prompt(vocabulary.templates[template], vocabulary.classnames[label]))


@lru_cache(maxsize=2**15)
def _caption_tokens(zero_shot: Path, text: str) -> Any:
    """Captions repeat, from epoch to epoch and in small vocabularies at once."""
    return _tokens(zero_shot, text)


def _tokens(zero_shot: Path, text: str) -> Any:
    tokens = _tokenizer(zero_shot)([text])[0].numpy()
    return without_padding(tokens) if _may_be_short(zero_shot) else tokens


@lru_cache(maxsize=1)
def _may_be_short(zero_shot: Path) -> bool:
    return reads_short_texts(read_config(zero_shot))


@lru_cache(maxsize=1)
def _tokenizer(zero_shot: Path) -> Any:
    return tokenizer_of(read_config(zero_shot))


@lru_cache(maxsize=1)
def _vocabulary(zero_shot: Path) -> Vocabulary:
    return read_vocabulary(zero_shot)
