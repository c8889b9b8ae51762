"""The spectral adapter as a PEFT method.

Importing this package makes `SpectralConfig` usable wherever PEFT is: `unet.add_adapter`, `get_peft_model`,
`PeftModel.from_pretrained`. Importing PEFT takes seconds, so import it where it is used.
"""

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

from spectral_diffusion.errors import SpectralError


def _extend_peft_types(name: str) -> None:
    """Add a member to PEFT's closed enum; a plain string would break transformers' `load_adapter`."""
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    setattr(PeftType, name, member)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)


_extend_peft_types("SPECTRAL")  # before config.py, which names the member

from spectral_diffusion.tuner.config import METHOD, SpectralConfig  # noqa: E402
from spectral_diffusion.tuner.layer import SpectralLayer  # noqa: E402
from spectral_diffusion.tuner.maths import Numbers  # noqa: E402
from spectral_diffusion.tuner.model import (  # noqa: E402
    SpectralModel,
    fold,
    set_strength,
    spectral_layers,
    using_spectrum,
)


def _register() -> None:
    """Register once; a PEFT that brings its own method of this name is refused rather than overwritten."""
    registered = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType[METHOD])
    if registered is None:
        register_peft_method(name=METHOD.lower(), config_cls=SpectralConfig, model_cls=SpectralModel)
    elif registered.__module__ != SpectralModel.__module__:
        raise SpectralError(
            f"This PEFT has its own method {METHOD} ({registered.__module__}): install peft 0.21."
        )


_register()

__all__ = [
    "Numbers",
    "SpectralConfig",
    "SpectralLayer",
    "SpectralModel",
    "fold",
    "set_strength",
    "spectral_layers",
    "using_spectrum",
]
