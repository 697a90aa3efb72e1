"""What DDP holds of a detector, as a run wraps it."""

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from backbones import detector_on
from builders import four_images, part_of
from run.build import build_accelerator
from settings.keys import Config, RunConfig


def test_no_bucket_is_for_frozen_parameters_and_gradients_lie_in_the_buckets(
    tmp_path, fresh_accelerator
):
    accelerator = build_accelerator(Config(run=RunConfig(tracker="none")))
    trainable = detector_on(tmp_path / "b", "hgnet_v2", "detr", freeze="all").trainable.train()
    trained = [p for p in trainable.parameters() if p.requires_grad]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        settings = accelerator.ddp_handler.to_kwargs()
        wrapped = DistributedDataParallel(trainable, **settings)
        held = wrapped._get_ddp_logging_data()
        batch = part_of(four_images("uneven"), slice(0, 4))
        wrapped(batch, trainable.counts(batch).alone).total.backward()
    finally:
        dist.destroy_process_group()
    assert held["num_parameter_tensors"] == len(trained) < len(list(trainable.parameters()))
    buckets = sum(map(int, held["bucket_sizes"].split(",")))
    assert buckets == held["total_parameter_size_bytes"] == sum(p.nbytes for p in trained)
    assert not held["broadcast_buffers"]
    places = {p.grad.untyped_storage().data_ptr() for p in trained}
    assert len(places) == len(held["bucket_sizes"].split(","))
    assert all(p.grad is None for p in trainable.parameters() if not p.requires_grad)
