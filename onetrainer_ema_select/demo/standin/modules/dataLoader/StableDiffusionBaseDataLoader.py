"""Pictures made by arithmetic: 32 stripe patterns of 8 kinds to train on, 12 others to validate with."""

import math

import torch
from modules.dataLoader.BaseDataLoader import BaseDataLoader
from modules.util import factory
from modules.util import multi_gpu_util as multi
from modules.util.enum.ModelType import ModelType

KINDS = 8
# Name, path and seed of the two concepts to validate with, and their pictures.
VALIDATION = (
    ("stripes", "concepts/stripes", 11, range(100, 108)),
    ("", "concepts/others", 12, range(108, 112)),
)


def picture(number):
    """Stripes whose direction is the kind and whose shift is the number."""
    angle = math.pi * (number % KINDS) / KINDS
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    return torch.sin(rows * math.sin(angle) + columns * math.cos(angle) + number).unsqueeze(0)


class Pictures:
    """The pictures of one epoch in an order of its own, which depends on nothing but the epoch's number."""

    def __init__(self, numbers, batch_size, epoch, skip):
        self._numbers = list(numbers)
        self._batch_size = batch_size
        self._epoch = epoch - 1
        self._skip = skip

    def approximate_length(self):
        return math.ceil(len(self._numbers) / self._batch_size)

    def start_next_epoch(self):
        self._epoch += 1

    def __iter__(self):
        order = torch.randperm(len(self._numbers), generator=torch.Generator().manual_seed(self._epoch)).tolist()
        numbers = [self._numbers[index] for index in order]
        first, self._skip = self._skip, 0  # only the epoch that a resumed run is in has begun before
        for step in range(first, self.approximate_length()):
            chosen = numbers[step * self._batch_size :][: self._batch_size]
            yield {
                "image": torch.stack([picture(number) for number in chosen]),
                "tokens": torch.tensor([number % KINDS for number in chosen]),
            }


class ValidationPictures(Pictures):
    """One picture at a time, and which concept it is of."""

    def __init__(self, epoch):
        super().__init__([number for *_, numbers in VALIDATION for number in numbers], 1, epoch, skip=0)

    def __iter__(self):
        for name, path, seed, numbers in VALIDATION:
            for number in numbers:
                yield {
                    "image": picture(number).unsqueeze(0),
                    "tokens": torch.tensor([number % KINDS]),
                    "concept_name": [name],
                    "concept_path": [path],
                    "concept_seed": torch.tensor([seed]),
                }


@factory.register(BaseDataLoader, ModelType.STABLE_DIFFUSION_15)
class StableDiffusionBaseDataLoader(BaseDataLoader):
    def __init__(self, config, train_progress, is_validation=False):
        epoch = train_progress.epoch
        if is_validation:
            self._pictures = ValidationPictures(epoch)
        else:
            numbers = range(multi.rank(), 32, multi.world_size())
            self._pictures = Pictures(numbers, config.batch_size, epoch, skip=train_progress.epoch_step)

    def get_data_set(self):
        return self._pictures

    def get_data_loader(self):
        return self._pictures
