import torch

from builders import tiny_detector
from training.ema import Ema
from training.state import trainable_tensors


def test_average_follows_the_formula_and_is_swapped_in_and_out(tmp_path):
    model = tiny_detector(tmp_path / "backbone", "detr").model
    ema = Ema(model, 0.22)
    ema.start()
    start = {n: t.detach().clone() for n, t in trainable_tensors(model).items()}
    expected = dict(start)
    for step, decay in ((1, 2 / 11), (2, 0.22), (3, 0.22)):  # 3/12 and 4/13 are above 0.22
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        ema.update(step)
        own = trainable_tensors(model)
        expected = {n: decay * t + (1 - decay) * own[n].detach() for n, t in expected.items()}
    trained = {n: t.detach().clone() for n, t in trainable_tensors(model).items()}
    with ema.applied():
        for name, tensor in trainable_tensors(model).items():
            torch.testing.assert_close(tensor, expected[name])
    for name, tensor in trainable_tensors(model).items():
        assert torch.equal(tensor, trained[name])


def test_without_decay_there_is_no_second_set(tmp_path):
    model = tiny_detector(tmp_path / "backbone", "detr").model
    ema = Ema(model, None)
    ema.start()
    ema.update(1)
    before = {n: t.detach().clone() for n, t in trainable_tensors(model).items()}
    with ema.applied():
        assert all(torch.equal(t, before[n]) for n, t in trainable_tensors(model).items())
    assert not ema.tensors
