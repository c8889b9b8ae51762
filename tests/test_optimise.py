"""Optimisers and schedules by name, refused in one sentence; the running mean is put in and taken out exactly."""

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from concepts.optimise import Ema, make_optimiser, make_schedule, optimiser_class, tenth
from concepts.settings import SCHEDULES, Settings
from spectral_diffusion.errors import InputError


def parts():
    return {"unet": [nn.Parameter(torch.ones(3))], "words": [nn.Parameter(torch.ones(2))]}


def settings(**options):
    return Settings("rex", "dog", **options)


def test_each_part_moves_at_its_own_rate():
    numbers = parts()
    optimiser = make_optimiser(settings(unet_rate=0.5, word_rate=0.25), numbers)
    for group in numbers.values():
        group[0].grad = torch.ones_like(group[0])
    optimiser.step()
    assert torch.allclose(numbers["unet"][0], torch.full((3,), 0.5))
    assert torch.allclose(numbers["words"][0], torch.full((2,), 0.75))


def test_any_torch_optimiser_goes_by_its_path_with_its_options():
    optimiser = make_optimiser(
        settings(optimiser="torch.optim.SGD", optimiser_options={"momentum": 0.9}), parts()
    )
    assert isinstance(optimiser, torch.optim.SGD) and optimiser.param_groups[0]["momentum"] == 0.9


def test_one_kernel_moves_all_numbers_unless_told_otherwise():
    fused = lambda **options: make_optimiser(settings(**options), parts()).defaults.get("fused")  # noqa: E731
    assert fused() and fused(optimiser="torch.optim.SGD")
    assert not fused(optimiser_options={"foreach": True}) and not fused(optimiser_options={"fused": False})
    assert fused(optimiser="torch.optim.Adamax") is None  # has none


@pytest.mark.parametrize(
    "name, said",
    [
        ("adam", "no optimiser 'adam': give adamw, adamw8bit, prodigy, or module.Class"),
        ("torch.optim.Nothing", "torch.optim.Nothing is not to be had here"),
        ("no_such_package.Adam", "no_such_package.Adam is not to be had here"),
        ("torch.nn.Linear", "is no torch optimiser"),
        (".x", "is not to be had here"),
    ],
)
def test_an_optimiser_that_cannot_be_had_is_one_sentence(name, said):
    with pytest.raises(InputError, match=said):
        optimiser_class(name)


@pytest.mark.parametrize("name, package", [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_an_optimiser_of_another_package_is_asked_for_by_its_name(name, package):
    if importlib.util.find_spec(package):
        assert issubclass(optimiser_class(name), torch.optim.Optimizer)
        return
    with pytest.raises(InputError, match=rf"{name} is not to be had here .*pip install {package}"):
        optimiser_class(name)


def test_an_optimiser_without_decay_is_taken_where_none_is_wished():
    assert isinstance(make_optimiser(settings(optimiser="torch.optim.Rprop"), parts()), torch.optim.Rprop)
    with pytest.raises(InputError, match="weight_decay"):
        make_optimiser(settings(optimiser="torch.optim.Rprop", weight_decay=0.1), parts())


def test_without_decay_an_optimiser_that_decays_by_itself_does_not():
    numbers = parts()
    for group in numbers.values():
        group[0].grad = torch.zeros_like(group[0])
    make_optimiser(settings(), numbers).step()
    assert torch.equal(numbers["unet"][0], torch.ones(3))


@pytest.mark.skipif(not importlib.util.find_spec("prodigyopt"), reason="a package of its own")
def test_prodigy_moves_all_parts():
    numbers = parts()
    options = settings(optimiser="prodigy", weight_rate=1.0, word_rate=1.0, schedule="cosine", steps=50)
    optimiser = make_optimiser(options, numbers)
    schedule = make_schedule(options, optimiser)
    for _ in range(50):
        for group in numbers.values():
            group[0].grad = group[0].detach().clone()  # towards zero
        optimiser.step()
        schedule.step()
    assert all((group[0] < 0.9).all() for group in numbers.values())


def test_an_option_that_an_optimiser_does_not_take_is_told():
    with pytest.raises(InputError, match=r"does not take its options .*wings"):
        make_optimiser(settings(optimiser_options={"wings": 2}), parts())


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_or_stays_and_never_rises_above_the_rate(name):
    options = settings(schedule=name, steps=20, warmup=5, unet_rate=0.5)
    optimiser = make_optimiser(options, parts())
    schedule, rates = make_schedule(options, optimiser), []
    for _ in range(20):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert max(rates) <= 0.5 + 1e-9 and max(rates) >= 0.4
    assert name == "constant" or rates[0] < rates[4]


def test_our_own_schedule_ends_at_a_tenth():
    assert [tenth(step, 100, 10) for step in (0, 4, 50)] == pytest.approx([0.1, 0.5, 0.55])
    assert tenth(100, 100, 10) == pytest.approx(0.1) and tenth(0, 1, 0) == 1


@hypothesis_settings(deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=20), st.floats(0.01, 0.999))
def test_the_mean_lies_between_what_it_saw_and_is_taken_out_exactly(values, decay):
    number = nn.Parameter(torch.zeros(1))
    ema = Ema([number], decay)
    for value in values:
        number.data.fill_(value)
        ema.update()
    with ema.applied():
        mean = number.item()
    assert number.item() == values[-1]
    assert min(0.0, *values) - 1e-5 <= mean <= max(0.0, *values) + 1e-5
    again = Ema([number], decay)
    again.load(ema.state())
    with again.applied():
        assert number.item() == mean


def test_without_decay_the_numbers_are_their_own_mean():
    number = nn.Parameter(torch.ones(1))
    ema = Ema([number], 0.0)
    ema.update()
    with ema.applied():
        assert number.item() == 1
