"""One process a device, where torch.distributed was set up by whoever started them; else just one."""

import torch.distributed as dist


def is_enabled():
    return dist.is_available() and dist.is_initialized()


def rank():
    return dist.get_rank() if is_enabled() else 0


def is_master():
    return rank() == 0


def world_size():
    return dist.get_world_size() if is_enabled() else 1


def broadcast_parameters(params, train_device):
    """The first process's weights for all."""
    del train_device
    if is_enabled():
        for parameter in params:
            dist.broadcast(parameter.data, src=0)


def reduce_grads_mean(params):
    if is_enabled():
        for parameter in params:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad.div_(world_size())
