from enum import Enum


class Optimizer(Enum):
    ADAMW = "ADAMW"
    ADAM = "ADAM"
    SGD = "SGD"
    SCHEDULE_FREE_ADAMW = "SCHEDULE_FREE_ADAMW"

    def __str__(self):
        return self.value

    @property
    def is_schedule_free(self):
        """Whether it averages by itself and must be told of train and eval."""
        return self is Optimizer.SCHEDULE_FREE_ADAMW
