"""The slow imports, made once and by one thread.

The lazy modules of diffusers and transformers fail when a second thread asks for them half-imported: the base is
loaded in the background while the first visitors already press buttons.
"""

from __future__ import annotations

import threading

_ONE = threading.Lock()


def slow_imports() -> None:
    """Returns once torch, diffusers, transformers and PEFT are imported, by whichever thread came first."""
    with _ONE:
        import diffusers
        import peft  # noqa: F401
        import transformers

        for module, name in (
            (diffusers, "StableDiffusionPipeline"),
            (transformers, "CLIPModel"),
            (transformers, "CLIPTokenizer"),
            (transformers, "ResNetModel"),
        ):
            getattr(module, name)  # only now is it really imported
