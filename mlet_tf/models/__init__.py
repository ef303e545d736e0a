"""DLRM on tensorflow-recommenders."""

from mlet_tf.models.dlrm import DLRM, build_dlrm
from mlet_tf.models.top import SkipTop

__all__ = ["DLRM", "SkipTop", "build_dlrm"]
