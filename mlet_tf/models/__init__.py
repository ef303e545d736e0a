"""DLRM on tensorflow-recommenders."""
