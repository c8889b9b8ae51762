"""One adapted layer: the base layer, untouched, and any number of named spectral adapters beside it.

`factors` is the single source of the weight change: forward, `get_delta_weight` and merging all use it.
The weight change is linear in the strength, which is the product of ours (`set_strength`) and of PEFT's
scale (`set_scale`, `scale_layer`): diffusers resets the latter to 1 after a call with scale 0.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from spectral_diffusion.errors import InputError
from spectral_diffusion.triplets import Triplets, as_matrix
from spectral_diffusion.tuner.config import SpectralConfig
from spectral_diffusion.tuner.maths import FORMS, Factors, Numbers, depth_gain, project_off


class _MovesOnly:
    """A container that follows `.to(device)` but keeps its fp32 when the model is cast to half precision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


class Float32Parameters(_MovesOnly, nn.ParameterDict):
    """Adapter name -> parameter."""


class Float32Buffers(_MovesOnly, BufferDict):
    """Adapter name -> buffer, saved with the adapter."""

    def __init__(self) -> None:
        super().__init__(persistent=True)


class SpectralLayer(nn.Module, BaseTunerLayer):
    """A linear layer or 1x1 convolution with spectral adapters."""

    adapter_layer_names = ("spectral_A", "spectral_B", "spectral_C")
    buffer_names = (
        "spectral_U",  # out x r, the slice
        "spectral_S",  # r
        "spectral_V",  # in x r
        "spectral_gain",  # r; slice-aware adapters only
        "spectral_U_others",  # out x m, what an isolated adapter keeps off; isolated adapters only
        "spectral_V_others",  # in x m
        "spectral_V_neutral",  # in x n, what `keep_off` was given
    )
    other_param_names = (*buffer_names, "r", "form", "scaling", "strength")

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        _check_supported(base_layer)
        self.base_layer = base_layer
        self.out_features, self.in_features = as_matrix(base_layer.weight).shape
        for name in self.adapter_layer_names:
            setattr(self, name, Float32Parameters())
        for name in self.buffer_names:
            setattr(self, name, Float32Buffers())
        self.r: dict[str, int] = {}
        self.form: dict[str, str] = {}
        self.scaling: dict[str, float] = {}
        self.strength: dict[str, float] = {}
        self._original: Tensor | None = None
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []

    @property
    def original_weight(self) -> Tensor:
        """The base's own weight, also while adapters are merged into the layer."""
        return self.get_base_layer().weight.data if self._original is None else self._original

    def update_layer(self, adapter_name: str, config: SpectralConfig, triplets: Triplets | None) -> None:
        """Add an adapter; `triplets` are the top columns of the weight, None leaves them to a state dict."""
        device = self.original_weight.device
        self.r[adapter_name], self.form[adapter_name] = config.r, config.form
        self.scaling[adapter_name] = self.strength[adapter_name] = 1.0
        self._add_buffers(adapter_name, config, triplets, device)
        shapes = FORMS[config.form].shapes(self.out_features, self.in_features, config.r)
        for name, shape in zip(self.adapter_layer_names, shapes, strict=True):
            getattr(self, name)[adapter_name] = nn.Parameter(torch.zeros(shape, device=device))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def numbers(self, adapter_name: str) -> Numbers:
        """A, B, C of the paper's formula, as they act: scaled by depth, isolated and kept off if so asked."""
        numbers = Numbers(*(getattr(self, name)[adapter_name] for name in self.adapter_layer_names))
        if adapter_name in self.spectral_gain:
            scale = FORMS[self.form[adapter_name]].scale
            numbers = scale(numbers, self.spectral_gain[adapter_name])
        if adapter_name in self.spectral_U_others:
            A = project_off(numbers.A, self.spectral_U_others[adapter_name])
            B = project_off(numbers.B, self.spectral_V_others[adapter_name])
            numbers = Numbers(A, B, numbers.C)
        # B of a rotation turns V, which is kept off already
        if adapter_name in self.spectral_V_neutral and self.form[adapter_name] == "additive":
            B = project_off(numbers.B, self.spectral_V_neutral[adapter_name])
            numbers = Numbers(numbers.A, B, numbers.C)
        return numbers

    @torch.no_grad()
    def keep_off(self, adapter_name: str, inputs: Tensor) -> None:
        """Let a new adapter read less of some inputs: its weight change becomes dW N with N = I - F F^T.

        `inputs`: F (in x n), fp32, columns of lengths below 1 that are orthogonal: 0 lets a direction through, nearly
        1 keeps it out. V of the slice goes through N, back to columns of length 1; B does whenever it acts.
        `fold` the adapter before it is saved.
        """
        off, V = inputs.to(self.spectral_V[adapter_name]), self.spectral_V[adapter_name]
        self.spectral_V[adapter_name] = nn.functional.normalize(project_off(V, off), dim=0)
        self.spectral_V_neutral[adapter_name] = off

    def triplets(self, adapter_name: str) -> Triplets:
        """U, S, V of the adapter's slice, fp32."""
        return Triplets(*(getattr(self, f"spectral_{part}")[adapter_name] for part in Triplets._fields))

    def factors(self, adapter_name: str) -> Factors:
        """P (out x p), Q (in x p), fp32, dW = P Q^T at strength 1; p = 2r (additive) or r (rotational)."""
        if adapter_name not in self.r:
            raise InputError(
                f"There is no adapter {adapter_name!r} here; known: {', '.join(self.r) or 'none'}."
            )
        # Autocast would round the r x r products before they are used.
        with torch.autocast(self.original_weight.device.type, enabled=False):
            return FORMS[self.form[adapter_name]].factors(
                self.triplets(adapter_name), self.numbers(adapter_name)
            )

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The weight change at the present strength, fp32, in the shape of the weight."""
        P, Q = self.factors(adapter_name)
        return (self.total_strength(adapter_name) * (P @ Q.mT)).reshape(self.original_weight.shape)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        x = _rounded_once(x)
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if name in self.r and self.total_strength(name):
                result = self._changed(result, x, name)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the weight changes to the weight: always original + the sum of all merged, rounded once."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.r]
        if not names:
            return
        merged = [*self.merged_adapters, *names]
        weight = self._merged_weight(merged)
        if safe_merge and not torch.isfinite(weight).all():
            raise ValueError(
                f"Merging {', '.join(names)} would give numbers that are not finite: nothing was merged."
            )
        self._original = self.original_weight
        self.get_base_layer().weight.data = weight
        self.merged_adapters = merged

    def unmerge(self) -> None:
        """Put the original weight back, bit for bit: it was kept, not recomputed."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        weight = self.get_base_layer().weight
        weight.data = self._original.to(weight)
        self._original = None
        self.merged_adapters = []

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; if it was merged, the weight becomes what it is without it."""
        still_merged = [name for name in self.merged_adapters if name != adapter_name]
        was_merged = adapter_name in self.merged_adapters
        if was_merged:
            self.unmerge()
        super().delete_adapter(adapter_name)
        if was_merged and still_merged:
            self.merge(adapter_names=still_merged)

    @torch.no_grad()
    def fold(self, adapter_name: str) -> None:
        """Store the numbers as they act, without gain, isolation and filter; the weight change stays bit-equal."""
        for name, tensor in zip(self.adapter_layer_names, self.numbers(adapter_name), strict=True):
            getattr(self, name)[adapter_name].copy_(tensor)
        for name in ("spectral_gain", "spectral_U_others", "spectral_V_others", "spectral_V_neutral"):
            if adapter_name in getattr(self, name):
                del getattr(self, name)[adapter_name]

    def total_strength(self, adapter_name: str) -> float:
        """Our strength times PEFT's scale."""
        return self.strength[adapter_name] * self.scaling[adapter_name]

    def set_strength(self, adapter_name: str, value: float) -> None:
        """Set our multiplier of the weight change; it survives diffusers' scale 0."""
        if adapter_name in self.r:
            if not math.isfinite(value):
                raise InputError(
                    f"strength = {value} of {adapter_name!r} is not possible; give a finite number."
                )
            self.strength[adapter_name] = float(value)

    def set_scale(self, adapter: str, scale: float) -> None:
        if adapter in self.r:
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        for name in self.active_adapters:
            if name in self.r:
                self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        for name in self.active_adapters:
            if name in self.r:
                self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "spectral." + super().__repr__()

    def _changed(self, result: Tensor, x: Tensor, adapter_name: str) -> Tensor:
        """`result` plus the adapter's answer to `x`, in the dtype of `result`."""
        (P, Q), strength = self.factors(adapter_name), self.total_strength(adapter_name)
        narrow = self._on_channels(x if torch.is_autocast_enabled(x.device.type) else x.to(Q.dtype), Q.mT)
        narrow = narrow if strength == 1 else narrow * strength
        if self.original_weight.ndim == 4 or narrow.dtype != result.dtype:
            return result + self._on_channels(narrow, P).to(result.dtype)
        # one pass over the wide result instead of two: as many tokens as 4096, and no gradient of it to keep
        wide = torch.addmm(result.reshape(-1, len(P)), narrow.reshape(-1, P.shape[1]), P.mT)
        return wide.reshape(result.shape)

    def _on_channels(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.original_weight.ndim == 4:
            return F.conv2d(x, weight[:, :, None, None])
        return F.linear(x, weight)

    @torch.no_grad()
    def _merged_weight(self, names: list[str]) -> Tensor:
        original = self.original_weight
        return (original.float() + sum(self.get_delta_weight(name) for name in names)).to(original.dtype)

    def _add_buffers(
        self, name: str, config: SpectralConfig, triplets: Triplets | None, device: torch.device
    ) -> None:
        width = min(self.out_features, self.in_features)
        if max(config.slice) >= width:
            raise InputError(
                f"A layer of width {width} has no spectral column {max(config.slice)}; choose a lower slice."
            )
        others = config.others(width)
        if triplets is None:
            triplets = self._unfilled(max(config.columns_needed, 1), device)
        own, rest = triplets.take(config.slice), triplets.take(others)
        buffers = dict(zip(self.buffer_names, own, strict=False))
        if config.slice_aware:
            buffers["spectral_gain"] = depth_gain(own.S, triplets.S[0])
        if others:
            buffers |= {"spectral_U_others": rest.U, "spectral_V_others": rest.V}
        for key, tensor in buffers.items():
            getattr(self, key)[name] = tensor.to(device, torch.float32)

    def _unfilled(self, k: int, device: torch.device) -> Triplets:
        shapes = (self.out_features, k), (k,), (self.in_features, k)
        return Triplets(*(torch.full(shape, torch.nan, device=device) for shape in shapes))

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """As PEFT's, but without its cast to the dtype of the base: the adapter stays in fp32."""
        device = device or self.original_weight.device
        for name in (*self.adapter_layer_names, *self.buffer_names):
            tensors = getattr(self, name)
            if adapter_name in tensors and not tensors[adapter_name].is_meta:
                tensors[adapter_name] = tensors[adapter_name].to(device, torch.float32)


def _rounded_once(x: Tensor) -> Tensor:
    """Under autocast `x` as the products will see it, so that weight and adapter need not each round it again."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _check_supported(base: nn.Module) -> None:
    """Linear layers and plain 1x1 convolutions with floating-point weights; everything else is refused."""
    kind = type(base).__name__
    if isinstance(base, nn.Conv2d):
        plain = base.kernel_size == (1, 1) and base.stride == (1, 1) and base.groups == 1
        if not plain or base.padding not in ((0, 0), "valid", "same"):
            raise InputError(
                f"Cannot adapt {base}: of convolutions only 1x1, stride 1, no groups, no padding."
            )
    elif not isinstance(base, nn.Linear):
        raise InputError(
            f"Cannot adapt a layer of type {kind}: only Linear and 1x1 Conv2d have a spectrum here."
        )
    if not base.weight.is_floating_point():
        raise InputError(
            f"Cannot adapt a layer of type {kind} with {base.weight.dtype} weights: load it unquantised."
        )
