"""A timm network as a chain of units that can be cut between its blocks, each from and to channels first."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.format import Format, nchw_to
from torch import Tensor, nn

from dermtune.errors import ConfigError

_Model = Any  # timm ships no type for its networks
_Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]


@dataclass(frozen=True)
class Chain:
    """The units of a network, one behind the other, from normalised pixels to the last feature map."""

    units: list[nn.Module]
    blocks_end: list[int]
    """How many units lie before each cut, 0 to the number of blocks."""


class _Unit(nn.Module):
    """A part of a network that takes or gives another layout, behind channels first.

    Tokens (N, L, C) become (N, C, L, 1): channels and places lie on the axes on which maps have them.
    """

    def __init__(self, part: nn.Module, takes: Format, gives: Format) -> None:
        super().__init__()
        self.part, self.takes, self.gives = part, takes, gives

    def forward(self, values: Tensor) -> Tensor:
        """From and to (N, C, h, w), or of tokens (N, C, L, 1)."""
        return _channels_first(self.part(nchw_to(values, self.takes)), self.gives)

    def extra_repr(self) -> str:
        """As a fingerprint of the network sees it."""
        return f"{self.takes.value} to {self.gives.value}"


class _Stem(nn.Module):
    """What comes before the blocks: the model itself, from which these and what follows them were taken."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """From normalised pixels (N, 3, S, S) to what the first block takes."""
        found: Tensor = self.model.forward_features(pixels)  # type: ignore[operator]  # every timm model has it
        return found


class _PatchMap(nn.Module):
    """The tokens of patches as a map; class token and registers, which are of no place, are left out."""

    def __init__(self, prefix: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.prefix, self.grid = prefix, grid

    def forward(self, tokens: Tensor) -> Tensor:
        """From (N, C, L, 1) to (N, C, h, w)."""
        return tokens[:, :, self.prefix :].reshape(*tokens.shape[:2], *self.grid)

    def extra_repr(self) -> str:
        """As a fingerprint of the network sees it."""
        return f"{self.prefix}, {self.grid}"


@dataclass(frozen=True)
class _Part:
    name: str
    module: nn.Module
    takes: Format
    gives: Format
    is_block: bool


def chain_of(model: _Model, *, name: str, input_size: int) -> Chain:
    """Take a network apart; it is in eval mode then, and no longer whole.

    timm's `feature_info` says where its blocks lie, and `forward_features` what follows them.

    Args:
        model: of timm.
        name: its name, for errors.
        input_size: S, of the images that it is to see.

    Raises:
        ConfigError: the chain would not be the network, bit for bit, or its features are no map.
    """
    model.eval()
    try:
        with torch.inference_mode():
            probe = torch.rand(1, 3, input_size, input_size)
            parts, features = _watch(model, probe)
            norm = _norm_behind_pooling(model, features)
            chain = _take_apart(model, parts)
            found = nn.Sequential(*chain.units)(probe)
    except Exception as error:  # networks of other kinds fail in ways of their own
        raise ConfigError(
            f"backbone.name: {name} cannot be cut at {input_size} pixels: {error!r:.200}"
        ) from error
    is_chain = torch.equal(found, _channels_first(features, parts[-1].gives))
    if not is_chain or found.ndim != 4 or found.shape[1] != model.num_features:  # noqa: PLR2004 (N, C, h, w)
        raise ConfigError(f"backbone.name: {name} is no plain chain of blocks, so it cannot be cut")
    if parts[-1].gives is Format.NLC:
        chain.units[-1] = nn.Sequential(chain.units[-1], _patch_map(model, name, tokens=found.shape[2]))
    chain.units.extend(norm)
    return chain


def _channels_first(values: Tensor, layout: Format) -> Tensor:
    if layout is Format.NLC:
        return values.transpose(1, 2).unsqueeze(3)
    return values.permute(0, 3, 1, 2) if layout is Format.NHWC else values


def _watch(model: _Model, probe: Tensor) -> tuple[list[_Part], Tensor]:
    """The parts of the network, in the order in which `forward_features` calls them; and the features."""
    container, tops = _container(model)
    names = {child: name for name, child in model.named_children() if name != container}
    if container:
        names |= {one: f"{container}.{name}" for name, one in getattr(model, container).named_children()}
    parts: list[_Part] = []

    def layout(values: Tensor) -> Format:
        return Format.NLC if values.ndim == 3 else Format(getattr(model, "output_fmt", Format.NCHW))  # noqa: PLR2004

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        name = names[module]
        trains = any(True for _ in module.parameters())
        is_block = name.startswith(f"{container}.") if container else name in tops and trains
        if not isinstance(module, nn.Identity):
            parts.append(_Part(name, module, layout(given[0]), layout(output), is_block))

    with _hooked(names, note):
        return parts, model.forward_features(probe)


def _container(model: _Model) -> tuple[str, set[str]]:
    """The child that holds the blocks, '' where they lie on top; and the children that hold timm's stages."""
    tops = Counter(info["module"].partition(".")[0] for info in model.feature_info)
    most, count = tops.most_common(1)[0]
    return most if count > 1 else "", set(tops)


def _norm_behind_pooling(model: _Model, features: Tensor) -> list[nn.Module]:
    """The normalisation that the head has between pooling and classifier, where it has nothing else.

    Before pooling it normalises each place instead of their mean, and class activation maps stay exact.
    """
    called: list[tuple[nn.Module, int]] = []
    trained = [one for one in model.modules() if any(True for _ in one.parameters(recurse=False))]
    with _hooked(trained, lambda module, given, _: called.append((module, given[0].ndim))):
        model.forward_head(features, pre_logits=True)
    if len(called) != 1:
        return []
    norm, axes = called[0]
    if any(parameter.shape != (model.num_features,) for parameter in norm.parameters()):
        return []  # no scale and shift of each channel, but a layer of its own
    return [norm if axes == 4 else _Unit(norm, Format.NHWC, Format.NHWC)]  # noqa: PLR2004 (N, C, 1, 1) or (N, C)


@contextlib.contextmanager
def _hooked(modules: Iterable[nn.Module], hook: _Hook) -> Iterator[None]:
    hooks = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()


def _take_apart(model: _Model, parts: list[_Part]) -> Chain:
    first = next(index for index, part in enumerate(parts) if part.is_block)
    in_stem, behind = (
        {part.name.partition(".")[0] for part in some} for some in (parts[:first], parts[first:])
    )
    for name, child in model.named_children():
        if name in in_stem:
            continue
        if any(part.name.startswith(f"{name}.") for part in parts):
            setattr(model, name, type(child)())  # the container, now empty
        elif name in behind or any(True for _ in child.parameters()):
            setattr(model, name, nn.Identity())
    units = [_unit(_Stem(model), Format.NCHW, parts[first].takes)]
    units += [_unit(part.module, part.takes, part.gives) for part in parts[first:]]
    return Chain(units, [0, *(index + 2 for index, part in enumerate(parts[first:]) if part.is_block)])


def _unit(part: nn.Module, takes: Format, gives: Format) -> nn.Module:
    return part if takes is gives is Format.NCHW else _Unit(part, takes, gives)


def _patch_map(model: _Model, name: str, *, tokens: int) -> _PatchMap:
    prefix = getattr(model, "num_prefix_tokens", 0)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None or prefix + math.prod(grid) != tokens:
        raise ConfigError(
            f"backbone.name: {name} ends in tokens that are no map of patches, so it cannot be used"
        )
    return _PatchMap(prefix, tuple(grid))


def require_maps(units: Iterable[nn.Module], *, what: str) -> None:
    """Refuse a network some units of which give no map, but tokens, as within a transformer.

    Args:
        units: of a trunk, of a tail or of both.
        what: needs maps.

    Raises:
        ConfigError: it is such a network.
    """
    if any(isinstance(unit, _Unit) and unit.gives is Format.NLC for unit in units):
        raise ConfigError(
            f"{what} needs a map of each layer, and a transformer's layers have none, but tokens;"
            " choose a backbone.name of convolutions"
        )
