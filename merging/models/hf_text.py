"""Sequence classifiers of transformers: BERT, RoBERTa, DistilBERT, GPT-2, and what loads as they do.

θ is the encoder; all that the class for classification adds to it is a task's head, and so is a pooler that the base
does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bounds.types import Inputs, Params, leaves, refuse
from merging.checkpoints import read_weights
from merging.models.base import Expert, Export, Precision, TaskHead
from merging.models.hf_files import class_names, config_for, read_config, save_pretrained
from merging.models.libraries import library
from merging.models.modules import ModuleNetwork
from merging.models.tokens import Tokens, read_tokens
from merging.models.writing import inside, save_heads

_MASKED_IN_4D = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra")
"""Encoders whose 2-D mask may be handed on as [N, 1, L, L]: what the library makes of it, without a look at its values
(which ``vmap`` cannot take)."""
_NO_MATTER = re.compile(
    r"architectures|id2label|label2id|num_labels|problem_type|transformers_version|(torch_)?dtype|vocab_size|.*dropout.*"
    r"|.*_token_id|.*_pdrop|_.*|finetuning_task|task_specific_params|use_cache|tokenizer_class|initializer_range"
    r"|gradient_checkpointing|tie_word_embeddings|reorder_and_upcast_attn"
)
"""Entries of a configuration that scores do not depend on, or that are seen elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How texts are read and scores computed."""

    max_length: int = 128
    """Tokens of an example at most; longer ones are cut."""
    vocabulary: Literal["refuse", "common"] = "refuse"
    """Experts with another number of tokens: refuse them, or keep the rows that base and expert both have."""
    dtype: Precision = "float32"
    """What is computed with."""


class TextNetwork(ModuleNetwork):
    """A sequence classifier of transformers; ``folder`` is its base: a bare encoder, or with a head of any kind."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.common = options.vocabulary == "common"
        self.max_length = options.max_length
        self.config: Any = read_config(folder)
        self.tokens: Tokens | None = read_tokens(folder)
        module = _build(self.config)
        start = f"{module.base_model_prefix}."
        names = list(module.state_dict())
        super().__init__(
            module,
            read_weights(folder),
            f"base {folder}",
            head=[name for name in names if not name.startswith(start)],
            optional=frozenset(name for name in names if name.startswith(f"{start}pooler.")),
            dtype=options.dtype,
        )
        self.base_classes = class_names(self.config)
        self.takes_4d = self.config.model_type in _MASKED_IN_4D and hasattr(
            library("transformers.masking_utils"), "create_bidirectional_mask"
        )
        self._pad(self.config, self.tokens)
        _check_length(options.max_length, self.module.config)

    def expert(self, path: Path) -> Expert:
        """Read an expert's folder (as save_pretrained writes it), adapter or file."""
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        config: Any = read_config(folder) if (folder / "config.json").is_file() else None
        found = super().expert(path)
        notes = list(found.notes)
        if config is not None:
            notes += _differences(self.config, config)
        tokens = read_tokens(folder)
        if tokens is not None and self.tokens is not None:
            notes += tokens.differences(self.tokens)
        self.tokens = self.tokens or tokens
        self._pad(config, tokens)
        pad, own = getattr(config, "pad_token_id", None), self.module.config.pad_token_id
        if pad is not None and pad != own:
            notes.append(f"pads with token {pad}, the base with {own}, which is used")
        names = class_names(config) if config is not None else self.base_classes
        names = names if names is not None and len(names) == self.classes(found.head) else None
        return replace(found, class_names=names, notes=tuple(notes))

    def scores(self, module: nn.Module, head: TaskHead, inputs: Inputs) -> Tensor:
        """Return the logits of the library's class."""
        if isinstance(inputs, Tensor):
            inputs = {"input_ids": inputs}
        inputs = trimmed(inputs)
        mask = inputs.get("attention_mask")
        if self.takes_4d and mask is not None and mask.ndim == 2:
            hidden = (1 - mask.to(self.dtype))[:, None, None, :] * torch.finfo(self.dtype).min
            inputs = {**inputs, "attention_mask": hidden.expand(-1, -1, mask.shape[1], -1)}
        return torch.func.functional_call(module, dict(head.weights), (), dict(inputs), tie_weights=False).logits

    def prepare(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Tokenise texts, or pairs of texts; every example has ``max_length`` tokens (columns of padding cost nothing).

        Raises:
            InputError: examples that are no text; no tokenizer beside the base's weights, nor beside an expert's.
        """
        return self._tokens().read(examples, self.max_length)

    @property
    def preparation(self) -> str:
        """The tokenizer's content and the length."""
        return f"tokens {self._tokens().digest}, max_length {self.max_length}"

    def save(self, params: Params, folder: Path, heads: Mapping[str, TaskHead], export: Export) -> None:
        """Write folders of save_pretrained, with the tokenizer; see :meth:`write`."""
        for task, head in heads.items() if export.per_task else ():
            config = config_for(self.config, head)
            self._save(_on_meta(config), inside(folder, task), self.state_of(params, head), export)
        if not export.per_task:
            start = f"{self.module.base_model_prefix}."
            state = {n.removeprefix(start): v for n, v in self.state_of(params).items() if n.startswith(start)}
            self._save(getattr(_on_meta(self.config), start[:-1]), folder, state, export)
            save_heads(folder, heads, export.dtype)

    def recipe(self, task: str, *, per_task: bool) -> str:
        """Return Python that loads what was written, and scores texts."""
        place = task if per_task else "."
        read = f'head = load_file("heads/{task}.safetensors")\n'
        count = f', num_labels=len(head["{self.own[-1]}"])'
        return (
            f"{'' if per_task else 'from safetensors.torch import load_file'}\n"
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
            f"{'' if per_task else read}"
            f'model = AutoModelForSequenceClassification.from_pretrained("{place}"{"" if per_task else count})\n'
            f"{'' if per_task else 'model.load_state_dict(head, strict=False)'}\n"
            f'tokenizer = AutoTokenizer.from_pretrained("{place}")\n'
            "tokens = tokenizer(texts, truncation=True, max_length="
            f'{self.max_length}, padding=True, return_tensors="pt")\n'
            "scores = model.eval()(**tokens).logits"
        ).strip()

    def _save(self, model: Any, folder: Path, state: Mapping[str, Tensor], export: Export) -> None:
        model.config.pad_token_id = self.module.config.pad_token_id
        save_pretrained(model, folder, state, export)
        if self.tokens is not None:
            self.tokens.tokenizer.save_pretrained(folder)

    def _tokens(self) -> Tokens:
        if self.tokens is None:
            cure = "save the tokenizer into the base's folder (tokenizer.save_pretrained)"
            refuse("tokenizer", expected="its files beside the weights", got="none", cure=cure)
        return self.tokens

    def _pad(self, config: Any, tokens: Tokens | None) -> None:
        """Say which token is padding, where the base does not: GPT-2 has none of its own, and its classifiers need it.

        What is known first counts: the base's configuration, an expert's, a tokenizer's, the end of a text.
        """
        own = self.module.config
        given = getattr(config, "pad_token_id", None), tokens.tokenizer.pad_token_id if tokens is not None else None
        if own.pad_token_id is None:
            own.pad_token_id = next((pad for pad in (*given, own.eos_token_id) if pad is not None), None)


def open_base(base: str | Path, options: Options) -> TextNetwork:
    """Open the folder of a base model.

    Raises:
        InputError: no folder that transformers wrote, or a model that has no sequence classifier.
    """
    return TextNetwork(Path(base), options)


def _check_length(max_length: int, config: Any) -> None:
    """Refuse more tokens than the model has positions for (RoBERTa's begin after the number of its padding token)."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and "roberta" in config.model_type:
        limit -= config.pad_token_id + 1
    if max_length < 1 or (limit is not None and max_length > limit):
        got, cure = max_length, "set max_length in that range"
        refuse("max_length", expected=f"1 to {limit} tokens, the positions of the model", got=got, cure=cure)


def trimmed(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return inputs without the last columns that are padding in every example; under ``vmap``, as they are."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return inputs
    try:
        length = int(mask.any(dim=0).nonzero().max()) + 1
    except RuntimeError:  # no example has a token, or vmap hides the values
        return inputs
    if any(tensor.shape[:2] != mask.shape for tensor in leaves(inputs)):
        return inputs
    return {name: tensor[:, :length] for name, tensor in inputs.items()}


def _build(config: Any) -> Any:
    """Build the library's classifier, of random weights.

    Encoders run by the fused attention; others step by step, where the library's code can be followed by ``vmap``.
    """
    transformers = library("transformers")
    attention = "sdpa" if config.model_type in _MASKED_IN_4D else "eager"
    try:
        return transformers.AutoModelForSequenceClassification.from_config(
            deepcopy(config), attn_implementation=attention
        )
    except ValueError as error:
        got = f"{config.model_type} ({' '.join(str(error).split())[:80]})"
        refuse("base", expected="a model with a sequence classifier", got=got, cure="use an encoder such as BERT")


def _on_meta(config: Any) -> Any:
    with torch.device("meta"):
        return library("transformers").AutoModelForSequenceClassification.from_config(deepcopy(config))


def _differences(base: Any, expert: Any) -> list[str]:
    """Say in which entries that matter for scores two configurations differ."""
    if base.model_type != expert.model_type:
        got = f"a {expert.model_type}"
        refuse("expert", expected=f"a {base.model_type}, as the base", got=got, cure="use experts of the base")
    first, second = base.to_dict(), expert.to_dict()
    other = [k for k in sorted({*first, *second}) if first.get(k) != second.get(k) and not _NO_MATTER.fullmatch(k)]
    return [f"configuration differs from the base's, which is used: {', '.join(other)}"] if other else []
