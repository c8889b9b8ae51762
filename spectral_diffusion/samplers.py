"""The samplers, under the names A1111 gives them.

Every noise, also that of the stochastic samplers (Euler a, DPM2 a, LCM and those with SDE), comes from one
generator per picture: a picture does not depend on its batch, beyond float noise. A1111 draws the noise of
its SDE samplers from a Brownian tree (torchsde), so that those give other pictures there for the same seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectral_diffusion.errors import InputError

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}

# A1111's name -> diffusers' scheduler class and its options
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", _KARRAS),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", _SDE),
    "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}),
    "DPM++ SDE": ("DPMSolverSinglestepScheduler", _SDE),
    "DPM++ SDE Karras": ("DPMSolverSinglestepScheduler", {**_SDE, **_KARRAS}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", _KARRAS),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 Karras": ("KDPM2DiscreteScheduler", _KARRAS),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM2 a Karras": ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "LMS": ("LMSDiscreteScheduler", {}),
    "LMS Karras": ("LMSDiscreteScheduler", _KARRAS),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}),
    "LCM": ("LCMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
}
_MOST_STEPS = {"LCM": 50}  # a step of LCM is one or more of these


def check_sampler(name: str, steps: int) -> None:
    """Raises InputError for an unknown sampler, listing the known ones, or for more steps than it can do."""
    if name not in SAMPLERS:
        raise InputError(f"There is no sampler {name!r}; there are {', '.join(SAMPLERS)}.")
    if steps > (most := _MOST_STEPS.get(name, steps)):
        raise InputError(f"The sampler {name} does at most {most} steps, not {steps}: 4 to 8 are usual.")


def make_sampler(pipeline: StableDiffusionPipeline, name: str) -> Any:
    """diffusers' scheduler for an A1111 sampler name, on the noise schedule of the pipeline's base."""
    import diffusers

    kind, options = SAMPLERS[name]
    scheduler = _lms() if kind == "LMSDiscreteScheduler" else getattr(diffusers, kind)
    return scheduler.from_config(pipeline.scheduler.config, **options)


def _lms() -> type:
    """diffusers' LMS without its need for SciPy: the integrand is a polynomial, so NumPy integrates it exactly."""
    import numpy as np
    from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

    class ExactLMS(LMSDiscreteScheduler):
        def get_lms_coefficient(self, order: int, t: int, current_order: int) -> float:
            sigma = self.sigmas.double().cpu().numpy()
            others = [sigma[t - k] for k in range(order) if k != current_order]
            scale = np.prod([sigma[t - current_order] - other for other in others])
            whole = np.polynomial.Polynomial(np.polynomial.polynomial.polyfromroots(others)).integ()
            return float((whole(sigma[t + 1]) - whole(sigma[t])) / scale)

    return ExactLMS
