"""Sentences of a model card that do not depend on its numbers."""

from __future__ import annotations

LIMITS = """\
- The numbers are of the test sets above and say little about other pictures; where the shifts differ most from the
  training set, look at the classes one by one before you rely on the average.
- A fine-tuned head knows its classes alone: any picture gets one of them, however sure the model sounds.
- Whatever bias the zero-shot model and the training pictures have, this model has too. It was not examined for it.
- The licences of the zero-shot weights and of the training data apply to it."""

CITATION = """\
```bibtex
@inproceedings{wortsman2022robust,
  title     = {Robust fine-tuning of zero-shot models},
  author    = {Wortsman, Mitchell and Ilharco, Gabriel and Kim, Jong Wook and Li, Mike and Kornblith, Simon and
               Roelofs, Rebecca and Gontijo Lopes, Raphael and Hajishirzi, Hannaneh and Farhadi, Ali and
               Namkoong, Hongseok and Schmidt, Ludwig},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  note      = {arXiv 2109.01903}
}
```"""

_OPEN = """\
import json

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

folder = "{folder}"  # with the files of this page
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
"""

_OPEN_SHARDS = """\
import json

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

folder = "{folder}"  # with the files of this page
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}", load_weights=False)
with open(f"{{folder}}/model.safetensors.index.json") as file:
    names = sorted(set(json.load(file)["weight_map"].values()))
weights = {{}}
for name in names:
    weights |= load_file(f"{{folder}}/{{name}}")
model.load_state_dict({{name: value for name, value in weights.items() if not name.startswith("head.")}})
"""

_WITH_HEAD = """\
head = load_file(f"{folder}/head.safetensors")
with open(f"{folder}/classes.json") as file:
    classnames = json.load(file)["classnames"]

model.eval()
image = preprocess(Image.open("picture.jpg").convert("RGB")).unsqueeze(0)
with torch.no_grad():
    features = model.encode_image(image, normalize=True)
    logits = features @ head["head.weight"].T + head["head.bias"]
print(classnames[logits.argmax().item()])
"""

_WITH_TEXTS = """\
tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
texts = ["a photo of a cat", "a photo of a dog"]

model.eval()
image = preprocess(Image.open("picture.jpg").convert("RGB")).unsqueeze(0)
with torch.no_grad():
    features = model.encode_image(image, normalize=True)
    logits = model.logit_scale.exp() * features @ model.encode_text(tokenizer(texts), normalize=True).T
print(texts[logits.argmax().item()])
"""


def loading(folder: str, *, has_head: bool, is_in_one_file: bool) -> str:
    """How the model is opened and asked about a picture: a program that runs as it stands."""
    start = (_OPEN if is_in_one_file else _OPEN_SHARDS).format(folder=folder)
    said = "It is an ordinary open_clip model"
    said += ", with a linear head beside it." if has_head else "."
    return f"{said}\n\n```python\n{start}{_WITH_HEAD if has_head else _WITH_TEXTS}```"
