"""The name of a concept that owns no columns: held against other processes while it is trained, and nothing else."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from spectral_diffusion.errors import NameTaken
from spectral_diffusion.ledger import Entry, Ledger

if TYPE_CHECKING:
    import torch

    from spectral_diffusion.concept import Concept


class FreeName:
    """Takes the ledger's place in the training of a LoRA: the same verbs, without a slice or a line in the file."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._held = ledger, ExitStack()

    def entries(self) -> tuple[Entry, ...]:
        """None: the ledger tells nothing about it."""
        return ()

    def take(self, name: str, rank: int, start: int | None = None) -> None:
        """Hold the name. Raises NameTaken if the ledger has it, or a process is training it right now."""
        self._held.enter_context(self._ledger.holding(name))
        refuse_listed(self._ledger, name)

    def free(self, name: str) -> None:
        """Let go of the name."""
        self.close()

    def finish(self, name: str) -> None:
        """The concept's file is written: that alone makes it part of the library."""
        self.close()

    def close(self) -> None:
        """Let go of the name."""
        self._held.close()


def refuse_listed(ledger: Ledger, name: str) -> None:
    """Raises NameTaken if the ledger has given columns to `name`."""
    if (entry := ledger.entry(name)) is not None:
        raise NameTaken(
            f"{name} already has columns {entry.slice} ({entry.state}): pick another name, or remove it first."
        )


def keep_file(
    ledger: Ledger, concept: Concept, dtype: torch.dtype, target: Path, as_it_is: bool = False
) -> None:
    """Write the file of a concept without columns into its library: that alone makes it part of it.

    Raises NameTaken if the ledger has the name, or the file is there already (`as_it_is`).
    """
    with ledger.holding(concept.name):
        refuse_listed(ledger, concept.name)
        if as_it_is:
            raise NameTaken(
                f"{concept.name} is part of {ledger.library} already: there is nothing to import."
            )
        concept.save(target, dtype)
