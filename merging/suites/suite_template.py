"""The commented suite file that ``mergebound suite init`` writes: one head per kind of network, one body for all."""

from __future__ import annotations

from collections.abc import Mapping

_MODELS: Mapping[str, str] = {
    "hf_text": """\
  base: ./base                 # folder of the pretrained encoder (save_pretrained) with its tokenizer
  max_length: 64               # tokens of an example; longer ones are cut
""",
    "hf_clip": """\
  base: ./clip                 # folder of the whole CLIP (save_pretrained) with its tokenizer and image processor
""",
    "open_clip": """\
  base: ./clip.safetensors     # weights of the whole CLIP: θ_0 and the text tower of the heads
  architecture: ViT-B-32-quickgelu   # name in open_clip; OpenAI's weights need a -quickgelu one
""",
    "vision": """\
  base: ./resnet18.pth         # state dict of the pretrained network
  architecture: torchvision:resnet18 # or timm:NAME
""",
    "torch": """\
  base: ./base.safetensors     # state dict of the pretrained network
  factory: my_package.models:build   # a function without arguments that returns the module
  head: [classifier.*]         # names that are a task's own: each expert keeps its own, frozen
""",
}
_TEXTS = """\
data:                          # what all tasks have in common; a task may say otherwise
  text: text                   # column of the text, or [premise, hypothesis]
  label: label                 # column of the label: a class number or a class name
"""
_IMAGES = """\
data:                          # what all tasks have in common; a task may say otherwise
  label: label                 # column of the label in .csv, .jsonl, .parquet; folders of images need none
"""
_TEMPLATES = """\
templates: ["a photo of a {}."]      # prompts of the zero-shot heads
"""
_HEAD = """\
# A suite: a pretrained model, experts fine-tuned from it, and their data. Paths are relative to this file.
# python -m merging suite check THIS_FILE probes all of it; then python -m merging --suite THIS_FILE merges.
name: my-experts
model:
  kind: {kind}
"""
_BODY = """\
splits:                        # shares of each task's data, or counts; dealt by the seed, stratified by label
  train: 0.4                   # S_t, what the expert was fine-tuned on: the bound needs it. Leave out what you lack
  calibration: 0.1             # its labels are dropped: methods learn coefficients on it
  validation: 0.2              # methods choose on it, certificates rest on it
  test: 0.3                    # nothing but the report reads it
seed: 0
# shared_examples: name        # warn, in place of refusing, when an example stands in two splits
# cache: ./cache               # where prepared data are kept (default: the user's cache; none: memory)
tasks:
  - name: first
    expert: ./first{weights}   # {expert}
    classes: ["no", "yes"]     # in the order of the scores; default: the expert's own, or the data's
    data: {data}
  - name: second
    expert: ./second{weights}
    data:                      # a data set for each split, in place of shares of one
      train: second/train{suffix}
      validation: second/validation{suffix}
      test: second/test{suffix}
    splits:
      train: {{calibration: 64}}   # cut from train
"""


_PICTURES = "./first_images       # a folder of images with one sub-folder per class, .parquet, .npz, .csv, .jsonl"


def template(kind: str) -> str:
    """Return the suite file to begin with for a kind of network."""
    texts, folders = kind == "hf_text", kind.startswith("hf_")
    body = _BODY.format(
        expert=("a folder of save_pretrained" + ", or a PEFT adapter" * texts)
        if folders
        else "or .bin, .pt: a state dict",
        weights="" if folders else ".safetensors",
        data="first.jsonl          # .csv .tsv .json .jsonl .jsonl.gz .parquet .npz" if texts else _PICTURES,
        suffix=".jsonl" if texts else "",
    )
    templates = _TEMPLATES if "clip" in kind else ""
    model = _MODELS.get(kind, "  base: ./base\n")
    return _HEAD.format(kind=kind) + model + (_TEXTS if texts else _IMAGES) + templates + body
