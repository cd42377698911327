"""``fastssl export``: a run's encoder for other programs."""

from __future__ import annotations

from pathlib import Path

from fastssl.cli.parser import Parser
from fastssl.train.export import export_encoder
from fastssl.train.trained import open_run

DESCRIPTION = """\
Write a run's encoder as safetensors under torchvision's names (a ResNet) or timm's (a Vision Transformer), without the
head it was trained with. The file's metadata name the architecture and its options, the image size in pixels and the
normalisation.
"""

EXAMPLES = """\
  fastssl export runs/photos --out encoder.safetensors

  then, in Python:
    model = torchvision.models.resnet18()
    model.fc = torch.nn.Identity()
    model.load_state_dict(safetensors.torch.load_file("encoder.safetensors"), strict=True)
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    parser = Parser("export RUN --out FILE.safetensors", DESCRIPTION, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=str, help="folder of a run")
    parser.add_argument("--out", type=str, required=True, help="file to write, NAME.safetensors")
    given = parser.parse(words)
    export_encoder(open_run(Path(given.run)), Path(given.out))
    print(f"encoder: {given.out}")
    return 0
