"""The loss scale of fp16, on modules of one weight, and the keys that set it."""

import math

import pytest
import torch

from run.build import build_accelerator
from run.precision import Attempt, load_scaler, loss_scale, scaler_state, with_fitting_scale
from settings.keys import Config, RunConfig, TrainConfig
from train_accelerate import take_step

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


class Log:
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


class Product(torch.nn.Module):
    """Sum of weights times a tensor; no autocast rounds it."""

    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.ones(8))

    def forward(self, values):
        return (self.weights * values).sum()


class Bad(torch.autograd.Function):
    """The identity, with a gradient that is no number."""

    @staticmethod
    def forward(_, values):
        return values.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * math.nan


class Steps:
    """Attempts at steps of a module on an accelerator."""

    def __init__(self, precision, max_grad_norm=0.1, **keys):
        self.cfg = TrainConfig(steps=9, precision=precision, **keys)
        self.accelerator = build_accelerator(Config(run=RunConfig(tracker="none"), train=self.cfg))
        self.module = Product()
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1, weight_decay=0.1)
        self.model, self.optimizer = self.accelerator.prepare(self.module, optimizer)
        self.max_grad_norm = max_grad_norm
        self.attempts = 0
        self.log = Log()

    def step(self, loss_of):
        def attempt():
            self.attempts += 1
            loss = loss_of(self.model)
            self.accelerator.backward(loss)
            limit = self.max_grad_norm or math.inf
            norm = self.accelerator.clip_grad_norm_(list(self.module.parameters()), limit)
            return Attempt(take_step(self.optimizer, norm), norm, [loss.detach()])

        self.attempts = 0
        return with_fitting_scale(self.accelerator, attempt, 1, self.log)

    @property
    def left_alone(self):
        """Whether no step was taken yet."""
        return torch.equal(self.module.weights, torch.ones(8)) and not self.optimizer.state


def ordinary(model):
    return model(torch.full((8,), 0.5))


@pytest.mark.parametrize("max_grad_norm", [0.1, 0.0])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_finite_gradient_whose_norm_is_not_takes_no_step(precision, max_grad_norm):
    """Clipped it would be zero, or no number: AdamW must not see it."""
    steps = Steps(precision, max_grad_norm)
    made = steps.step(lambda model: model(torch.full((8,), 1e25)))
    assert not made.taken
    assert math.isinf(made.grad_norm)
    assert steps.left_alone
    assert steps.attempts == 1
    assert loss_scale(steps.accelerator) == (65536 if precision == "fp16" else None)
    assert steps.step(ordinary).taken
    assert not steps.left_alone


@pytest.mark.parametrize(("start", "attempts"), [(1024.0, 11), (1.0, 1)])
def test_where_no_scale_helps_the_step_is_given_up_and_the_scale_put_back(start, attempts):
    steps = Steps("fp16", loss_scale_start=start)
    made = steps.step(lambda model: Bad.apply(model(torch.ones(8))))
    assert not made.taken
    assert steps.left_alone
    assert steps.attempts == attempts
    assert loss_scale(steps.accelerator) == start
    assert not steps.log.lines


def test_a_loss_that_is_no_number_is_not_tried_again():
    steps = Steps("fp16")
    assert not steps.step(lambda model: model(torch.full((8,), math.nan))).taken
    assert (steps.attempts, loss_scale(steps.accelerator)) == (1, 65536)
    assert steps.left_alone


def test_an_overflow_is_tried_again_with_half_the_scale():
    """A gradient of 1000 overflows in half precision from 128 times it on."""

    def overflowing(model):
        weights = model.weights.half()
        return (weights.float() * 1000).sum()

    steps = Steps("fp16", loss_scale_start=1024.0)
    made = steps.step(overflowing)
    assert made.taken
    assert (steps.attempts, loss_scale(steps.accelerator)) == (5, 64)
    assert steps.log.lines == [
        "step 1: gradients overflow in fp16 at a loss scale of 1024; taken with 64"
    ]
    assert float(made.grad_norm) == pytest.approx(1000 * math.sqrt(8), rel=1e-3)
    assert steps.step(overflowing).taken
    assert steps.attempts == 1


def test_scale_grows_goes_on_and_counts_on():
    steps = Steps("fp16", loss_scale_start=8.0, loss_scale_growth_steps=3)
    scales = []
    for _ in range(5):
        assert steps.step(ordinary).taken
        scales.append(loss_scale(steps.accelerator))
    assert scales == [8, 8, 16, 16, 16]
    state = scaler_state(steps.accelerator)
    assert (state["scale"], state["_growth_tracker"]) == (16, 2)
    for growth_steps, grown in ((3, 32), (4, 16)):
        cfg = TrainConfig(steps=9, precision="fp16", loss_scale_growth_steps=growth_steps)
        load_scaler(steps.accelerator, state, cfg)
        assert loss_scale(steps.accelerator) == 16
        assert steps.step(ordinary).taken
        assert loss_scale(steps.accelerator) == grown
