"""A library of concepts that nobody trained: files of a few numbers and the ledger that goes with them."""

from small_concept import BASE, make_concept

from concepts.inventory import take_stock
from spectral_diffusion.ledger import Ledger, Slice

WIDTH = 16
SHAPES = {"unet.mid.to_q": (WIDTH, WIDTH), "text_encoder.layers.0.q_proj": (WIDTH, 20)}
OTHER_BASE = "cd" * 32


def concept(name="rex", start=0, rank=2, **changes):
    card = {"settings": {"name": name}, "captions": [f"a <{name}>"], "identity": 0.5}
    facts = {"shapes": SHAPES, "rows": 1, "slice": Slice(start, rank), "rank": rank, "card": card, **changes}
    return make_concept(name=name, **facts)


def ledger_of(library, fingerprint=BASE):
    return Ledger(library, fingerprint, WIDTH, "toybox")


def add(library, name="rex", start=None, rank=2, **changes):
    """A finished training of `name`, as the trainer leaves it."""
    ledger = ledger_of(library)
    owned = ledger.take(name, rank, start)
    concept(name, owned.start, rank, **changes).save(library / f"{name}.safetensors")
    ledger.finish(name)
    pictures = library / f"{name}-training" / "previews"
    pictures.mkdir(parents=True)
    (pictures.parent / "log.jsonl").write_text("{}")
    for step in (1, 2):
        (pictures / f"step-{step}.png").write_bytes(b"png")


def sent(folder, name="rex", start=0, **changes):
    """A concept file from somebody else's library."""
    folder.mkdir(exist_ok=True)
    concept(name, start, **changes).save(folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def states(library):
    return {listed.name: (str(listed.slice), listed.state) for listed in take_stock(library).concepts}


def problems(library):
    return " ".join(take_stock(library).problems)


def contents(library):
    """Every file with its content; locks and thumbnails aside."""
    return {
        path.relative_to(library): path.read_bytes()
        for path in sorted(library.rglob("*"))
        if path.is_file() and not {".locks", ".thumbs"} & set(path.relative_to(library).parts)
    }


def stocked(folder):
    """`rex` in columns 0..1, `mia` in 2..3, `bo` reserved in 4..5."""
    add(folder, "rex")
    add(folder, "mia")
    ledger_of(folder).reserve("bo", 2)
    return folder
