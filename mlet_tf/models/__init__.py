"""DLRM on tensorflow-recommenders."""

from mlet_tf.models.dlrm import DLRM, build_dlrm

__all__ = ["DLRM", "build_dlrm"]
