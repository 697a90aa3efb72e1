"""What the device of fake_device.py refuses and waits for, as JSON by the names of the functions below."""

import json

import torch

import fake_device

FAKE = "fake"


def adding_to_a_tensor_of_the_host():
    return torch.ones(3, device=FAKE) + torch.ones(3)


def joining_with_a_number_of_the_host():
    return torch.stack([torch.ones((), device=FAKE), torch.ones(())])


def reading_as_an_array():
    return torch.ones(3, device=FAKE).numpy()


def drawing_by_a_generator_of_the_host():
    return torch.rand(3, device=FAKE, generator=torch.Generator())


def changing_pinned_memory_too_early():
    source = torch.ones(3).pin_memory()
    source.to(FAKE, non_blocking=True)
    source.zero_()
    torch.accelerator.synchronize()


def multiplying_by_a_number_of_the_host():
    return torch.ones(3, device=FAKE) * torch.tensor(2.0)


def copying_pinned_memory():
    return torch.ones(3).pin_memory().to(FAKE, non_blocking=True)


def copying_other_memory():
    return torch.ones(3).to(FAKE, non_blocking=True)


def copying_and_waiting():
    return torch.ones(3).to(FAKE)


def making_a_tensor_of_numbers():
    return torch.tensor([1, 2], device=FAKE)


def reading_a_number():
    return torch.ones((), device=FAKE).item()


def deciding():
    return bool(torch.ones((), device=FAKE) > 0)


def reading_as_a_list():
    return torch.ones(3, device=FAKE).tolist()


def finding_what_is_not_zero():
    return torch.ones(3, device=FAKE).nonzero()


def choosing_by_a_mask():
    values = torch.ones(3, device=FAKE)
    return values[values > 0]


def writing_values_at_a_mask():
    values = torch.ones(3, device=FAKE)
    values[values > 0] = torch.ones(3, device=FAKE)


def writing_a_number_at_a_mask():
    values = torch.ones(3, device=FAKE)
    values[values > 0] = 2.0


def choosing_by_an_index_of_the_host():
    return torch.ones(3, device=FAKE)[torch.tensor([0, 2])]


def writing_at_an_index_of_the_host():
    torch.ones(3, device=FAKE)[torch.tensor([0, 2])] = torch.ones(2, device=FAKE)


def choosing_by_an_index_of_the_device():
    return torch.ones(3, device=FAKE)[torch.arange(2, device=FAKE)]


def writing_a_number_at_indices():
    torch.ones(3, device=FAKE)[torch.arange(2, device=FAKE)] = 2.0


def writing_a_number_at_a_place():
    torch.ones(3, device=FAKE)[1] = 2.0


def writing_a_number_into_a_slice():
    torch.ones(3, device=FAKE)[1:] = 2.0


def gradient_of_a_product():
    torch.ones(2, 3, device=FAKE, requires_grad=True).prod(-1).sum().backward()


def values_before_and_after_the_wait():
    values = torch.empty(2, pin_memory=True)
    values.copy_(torch.arange(2.0, device=FAKE), non_blocking=True)
    before = values.isnan().all().item()
    torch.accelerator.synchronize()
    assert before
    assert values.tolist() == [0, 1]


def a_step():
    """As on CUDA, the optimizer knows the parameters although they moved."""
    layer = torch.nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer.to(FAKE)
    layer(torch.ones(2, 3, device=FAKE)).sum().backward()
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    optimizer.step()
    moved = layer.weight.detach()
    assert moved.device.type == "fake"
    with fake_device.silence():
        assert not torch.equal(moved.cpu(), before)


if __name__ == "__main__":
    fake_device.install()
    torch.autograd.set_detect_anomaly(True)
    found = {}
    for name, probe in list(globals().items()):
        if callable(probe) and getattr(probe, "__module__", None) == "__main__":
            fake_device.LOG.begin()
            try:
                probe()
                found[name] = sorted(what for what, _ in fake_device.LOG.waits.elements())
            except (RuntimeError, TypeError) as error:
                found[name] = str(error)
    print(json.dumps(found))
