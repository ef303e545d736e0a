"""Learning-rate schedule."""

import math
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="mlet_tf")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a decay to zero at the last step.

    Args:
        peak: Learning rate at the end of the warm-up.
        warmup_steps: Steps of warm-up.
        decay: `none`, `linear` or `cosine`.
        steps: Steps of the whole training.
    """

    def __init__(self, peak: float, warmup_steps: int, decay: str, steps: int) -> None:
        self.peak, self.warmup_steps, self.decay, self.steps = peak, warmup_steps, decay, steps

    def __call__(self, step: Any) -> Any:
        """Learning rate of a step, a scalar."""
        step = keras.ops.cast(step, "float32")
        warm = keras.ops.minimum(1.0, (step + 1) / max(1, self.warmup_steps))
        span = max(1, self.steps - self.warmup_steps)
        done = keras.ops.clip((step - self.warmup_steps) / span, 0.0, 1.0)
        factors = {
            "none": done * 0 + 1,
            "linear": 1 - done,
            "cosine": 0.5 * (1 + keras.ops.cos(math.pi * done)),
        }
        return self.peak * warm * factors[self.decay]

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "decay": self.decay,
            "steps": self.steps,
        }
