"""What a run computes, as one frozen dataclass; in and out of YAML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from fastssl import methods, models
from fastssl.data import plan_words, plans
from fastssl.data.engines import Choice
from fastssl.data.files import MAX_SKIPPED, allowed
from fastssl.data.media import MediaConfig, Modality
from fastssl.data.plans import ViewPlan
from fastssl.errors import UserError, unknown
from fastssl.files import atomic_write
from fastssl.methods import Method
from fastssl.models.resnet import Stem
from fastssl.models.vit import Pool
from fastssl.optim import OptimConfig
from fastssl.train.typed import build, typed

# These change where and how fast a run is computed, or what is reported on the way; a resumed run may change them.
# The bits are the same as an uninterrupted run's only where device and threads are.
FREE_ON_RESUME = frozenset({"device", "threads", "eval_every", "max_skipped"})
# Of all encoders together; each has some of them.
ENCODER_OPTIONS = ("stem", "width", "max_stride", "depth", "patch_size", "pool")


@dataclass(frozen=True)
class RunConfig:
    """What is trained, on what, and for how long. On a CPU the same settings, versions and threads give the same bits.

    Attributes:
        method: name of the pretext task.
        data: name of an embedded set, or path of an image folder, a zip or tar of images, idx files, or WebDataset
            shards (a folder of .tar files, or 'train-{000..099}.tar'); for methods that take videos, of a video file or
            a folder of them, or of folders of frames; for those that take audio, of recordings.
        image_size: side of the square images, in pixels.
        views: preset of the augmentations; without one (null) the method's own.
        plan: changes to it, by the fields of `fastssl.data.plans.ViewPlan`: ``{blur: 0.0}`` for all views; for those of
            one part of a plan that has several, such as DINO's, under its name: ``{local: {views: 6}}``.
        engine: what makes the views: "native" from images resized to ``image_size``, each decoded once; "stream" from
            the pixels of the files, which are decoded anew each epoch, for what does not fit into memory; "dali"
            likewise, by NVIDIA DALI. "auto" is "stream" for shards, else "native".
        max_skipped: the share of the files, in [0, 1], above which unreadable ones end the run; one is always allowed.
        encoder: network to train. Its options are those that follow; what is not set (null) is the encoder's own, the
            published network's.
        stem: first layers of a ResNet or AlexNet; "cifar" (3x3, stride 1) for images of 32 pixels or so, "imagenet"
            (7x7 or 11x11, with strides) for larger ones and for speed.
        width: channels of their first stage (64), of a Vision Transformer's tokens, or of a waveform's frames; smaller
            is faster.
        max_stride: pixels a position of a ResNet's last map stands for, at most (32), 8 where positions are compared;
            or samples of a waveform's frame (160), 80 for 8 kHz.
        depth: blocks of a Vision Transformer.
        patch_size: side of its patches, in pixels, which must fill the image; half as large means four times as many.
        pool: what becomes its features: the "mean" of the patches' tokens, or the class "token".
        epochs: passes over the training images. The learning rate's schedule spans them, so a resumed run keeps them.
        batch_size: images a step, 2 or more; each gives as many views as the method asks for.
        seed: of the initial weights, the order of the images and the augmentations.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
        threads: CPU threads; 0 leaves torch's own choice.
        precision: "bfloat16" computes the forward pass under autocast; the weights stay float32.
        channels_last: lays out views and the weights of convolutions, and so what they compute, by position, which can
            be faster.
        compile: has torch.compile make one program of the encoder, and of each copy of it that a teacher is, for
            training; takes a C++ compiler, on a GPU Triton, and a minute or two at first.
        eval_every: epochs between two kNN evaluations while training, 0 for none; needs labels. The last epoch is
            always evaluated.
        media: which clips of videos, or windows of recordings, a method is given that takes them.
        optim: the optimizer.
        method_config: the method's own settings; null takes its defaults.
    """

    method: str = "simclr"
    data: str = "clipart"
    image_size: int = 64
    views: str | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    engine: Choice = "auto"
    encoder: str = "resnet18"
    stem: Stem | None = None
    width: int | None = None
    max_stride: int | None = None
    depth: int | None = None
    patch_size: int | None = None
    pool: Pool | None = None
    epochs: int = 50
    batch_size: int = 256
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    eval_every: int = 5
    max_skipped: float = MAX_SKIPPED
    media: MediaConfig = field(default_factory=MediaConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    method_config: Any = None

    def __post_init__(self) -> None:
        method = methods.get(self.method)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be {least} or more; got {value}")
        if self.image_size > plans.LARGEST_SIZE:
            raise UserError(f"image_size must be at most {plans.LARGEST_SIZE}; got {self.image_size}")
        check_seed(self.seed)
        allowed(1, self.max_skipped)  # refuses what is no share
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (value is None and name in ENCODER_OPTIONS):
                raise unknown(name, value, choices)
        self.encoder_options()
        if self.method_config is None:
            object.__setattr__(self, "method_config", method.Config())
        object.__setattr__(self, "plan", plan_changes(self.plan))
        if self.modality != "audio":
            self.view_plan()
        elif self.views is not None or self.plan:
            raise UserError(f"{self.method} takes waveforms, of which no views are made: leave --views and --plan out")

    @property
    def modality(self) -> Modality:
        """What the method is trained on."""
        return methods.get(self.method).modality

    def encoder_options(self) -> dict[str, Any]:
        """What the encoder is built with: its own defaults, and what is set."""
        given = {name: getattr(self, name) for name in ENCODER_OPTIONS}
        return models.options(self.encoder, image_size=self.image_size, **given)

    def view_plan(self) -> ViewPlan:
        """The augmentations: the preset asked for, else the method's own, with the changes asked for."""
        method = methods.get(self.method)
        own = method.view_plan(self.image_size)
        preset = own if self.views is None else plans.get(self.views)(self.image_size)
        plan = plans.changed(preset, self.plan)
        what = "the plan" if self.views is None else f"the preset {self.views!r}"
        if not _enough(plan, own, method):
            needed = f"the method {self.method!r} takes {'2 or more' if method.multi_crop else own.total}"
            remedy = self._remedy(own, preset)
            who = what if plan.total == preset.total else "the plan"  # the preset makes others than the changed plan
            raise UserError(f"{who} makes {_views(plan.total)} of each image, {needed}: {remedy}")
        if not _fed_alike(plan, own):
            needed = f"the method {self.method!r} takes them {plan_words.normalization(own)}"
            raise UserError(f"of {what} {plan_words.normalization(plan)}; {needed}")
        method.check_plan(plan)
        return plan

    def _remedy(self, own: ViewPlan, preset: ViewPlan) -> str:
        """What to do about another number of views than the method's."""
        method = methods.get(self.method)
        if _enough(preset, own, method):
            return "leave the plan's views as they are"
        usable = {name: plans.get(name)(self.image_size) for name in plans.names()}
        names = [name for name, plan in usable.items() if _enough(plan, own, method) and _fed_alike(plan, own)]
        return f"--views may be {', '.join(names)}, or left out"


def _enough(plan: ViewPlan, own: ViewPlan, method: type[Method]) -> bool:
    """Whether a plan makes as many views as the method takes."""
    return plan.total == own.total or (method.multi_crop and plan.total >= 2)


def _fed_alike(plan: ViewPlan, own: ViewPlan) -> bool:
    """Whether a method's encoder gets values of the range that it has wherever it is used."""
    return (plan.mean, plan.std) == (own.mean, own.std)


def _views(count: int) -> str:
    return f"{count} view" + ("" if count == 1 else "s")


# Settings that are dataclasses of their own.
_GROUPS: dict[str, type[Any]] = {"media": MediaConfig, "optim": OptimConfig}
_LARGEST_SEED = 2**32 - 1  # what the report's t-SNE takes
_CHOICES = {
    "engine": get_args(Choice),
    "stem": get_args(Stem),
    "pool": get_args(Pool),
    "precision": ("float32", "bfloat16"),
}
_LEAST = {
    "image_size": 8,
    "width": 1,
    "max_stride": 1,
    "depth": 1,
    "patch_size": 1,
    "epochs": 1,
    "batch_size": 2,
    "threads": 0,
    "eval_every": 0,
}


def check_seed(seed: int) -> None:
    """Refuses a seed that something it is given to would not take.

    Raises:
        UserError: naming it.
    """
    if seed < 0:
        raise UserError(f"seed must be 0 or more; got {seed}")
    if seed > _LARGEST_SEED:
        raise UserError(f"seed must be at most {_LARGEST_SEED}; got {seed}")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain values (str, int, float, list, dict, None) for YAML; the method's settings stand under its name."""
    values: dict[str, Any] = _plain(asdict(config))
    values[config.method] = values.pop("method_config")
    return values


def from_dict(values: Mapping[str, Any]) -> RunConfig:
    """The inverse of `to_dict`; missing keys take the method's recipe, and what that leaves open its default.

    Raises:
        UserError: naming the unknown or unusable setting.
    """
    name = values.get("method", RunConfig.method)
    method = methods.get(name)
    given = {**method.recipe, **values}
    given |= dict.fromkeys(_misfits(given, method.recipe))
    for group in _GROUPS:
        if isinstance(given.get(group), Mapping):
            given[group] = {**method.recipe.get(group, {}), **given[group]}
    known = [*(item.name for item in fields(RunConfig) if item.name != "method_config"), name]
    for setting in given:
        if setting not in known:
            raise unknown("setting", setting, known)
    given["method_config"] = build(method.Config, given.pop(name, {}), name)
    for group, kind in _GROUPS.items():
        given[group] = build(kind, given.get(group, {}), group)
    return build(RunConfig, given)


def _misfits(given: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """Options that a method's recipe has for its own encoder, where another one that lacks them is asked for."""
    encoder = given.get("encoder", RunConfig.encoder)
    if encoder == recipe.get("encoder", RunConfig.encoder) or encoder not in models.names():
        return []
    own = models.options(encoder)
    return [name for name in ENCODER_OPTIONS if name in recipe and given[name] == recipe[name] and name not in own]


def save(config: RunConfig, path: Path) -> None:
    """Writes YAML that `fastssl pretrain --config` reads."""
    text = "# Repeat this run: fastssl pretrain --config THIS_FILE --out ANOTHER_FOLDER\n"
    with atomic_write(path) as partial:
        partial.write_text(text + yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")


def read(path: Path, method: str | None = None) -> RunConfig:
    """The config of a YAML file.

    Args:
        path: of the file.
        method: is taken where the file names none.
    Raises:
        UserError: if it cannot be read, or holds what `from_dict` refuses.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "it is not YAML"
        raise UserError(f"cannot read the config {path}: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings: expected lines of the form name: value")
    try:
        return from_dict({"method": method or RunConfig.method, **values})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """What of ``new`` would make a resumed run's result differ, each as ``name: old -> new``."""
    given, wanted = flat(old), flat(new)
    names = [name for name in dict.fromkeys([*given, *wanted]) if name not in FREE_ON_RESUME]
    changes = [(name, _in_effect(old, given, name), _in_effect(new, wanted, name)) for name in names]
    return [f"{name}: {before} -> {after}" for name, before, after in changes if before != after]


def _in_effect(config: RunConfig, values: Mapping[str, Any], name: str) -> Any:
    """A setting of ``config``, whose settings are ``values``; of a plan, what it has where nothing is set."""
    if name in values or not name.startswith("plan."):
        return values.get(name)
    *part, setting = name.split(".")[1:]
    found = {own.name: _plain(getattr(own, setting)) for own in config.view_plan().parts if part in ([], [own.name])}
    alike = all(value == next(iter(found.values())) for value in found.values())
    if alike:
        return next(iter(found.values()), None)
    return ", ".join(f"{value} ({name})" for name, value in found.items())


def flat(config: RunConfig) -> dict[str, Any]:
    """The settings by their names on the command line: ``epochs``, ``optim.lr``, ``simclr.temperature``."""
    return flattened(to_dict(config))


def plan_changes(given: Any, where: str = "plan") -> dict[str, Any]:
    """What `plans.changed` takes, of what a file or the command line gives: typed, and without what is null.

    Raises:
        UserError: naming the value of another type.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"{where} needs settings of the form name: value; got {given!r}")
    kinds = plans.changeable()
    changes: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping) and name not in kinds:
            value = plan_changes(value, f"{where}.{name}")
        elif value is not None and name in kinds:
            value = typed(f"{where}.{name}", value, kinds[name])
        if value is not None and value != {}:
            changes[name] = value
    return changes


def with_method(config: RunConfig, method: str) -> RunConfig:
    """``config`` for another method: what it leaves as its own method has it becomes as the other has it."""
    if method == config.method:
        return config
    own = to_dict(recipe(config.method))
    kept = {name: value for name, value in to_dict(config).items() if value != own[name]}
    kept.pop(config.method, None)  # the settings of the method that is left
    return from_dict({**kept, "method": method})


def recipe(method: str) -> RunConfig:
    """A run of ``method`` with nothing set: its recipe."""
    return from_dict({"method": method})


def command(config: RunConfig) -> str:
    """The shortest command line that gives ``config``."""
    default = flat(recipe(config.method))
    words = [
        f"--{name} {_words(name, value)}"
        for name, value in flat(config).items()
        if name != "method" and value != default.get(name)
    ]
    return " ".join(["fastssl pretrain", config.method, *words])


def _words(name: str, value: Any) -> str:
    if name.startswith("plan.") and isinstance(value, list):
        return " ".join(map(json.dumps, value))
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under the names of the command line: ``{"optim": {"lr": 1}}`` as ``{"optim.lr": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
