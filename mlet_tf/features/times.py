"""Times in text inside the served graph."""

import re

import tensorflow as tf

from mlet_tf.datasets.times import ISO_8601, unix_seconds

_ISO_GROUPS = re.compile(ISO_8601).groupindex


def iso_seconds(texts: tf.Tensor) -> tf.Tensor:
    """ISO 8601 times, string `[N]`, as Unix seconds, int64 `[N]`, with operations that TF Serving has.

    It reads the same texts as `mlet_tf.datasets.times.iso_seconds` and refuses others, except for days that a month
    does not have, such as February 30.
    """
    fits = tf.reduce_all(tf.strings.regex_full_match(texts, ISO_8601))
    with tf.control_dependencies([tf.debugging.Assert(fits, ["Expected ISO 8601 times. Received:", texts])]):
        texts = tf.identity(texts)

    def part(name: str) -> tf.Tensor:
        # A leading zero makes an absent part a number.
        return tf.strings.to_number(
            tf.strings.regex_replace(texts, ISO_8601, rf"0\{_ISO_GROUPS[name]}"), tf.int64
        )

    local = unix_seconds(*(part(name) for name in ("year", "month", "day", "hour", "minute", "second")))
    zone = (part("zone_hour") * 60 + part("zone_minute")) * 60
    west = tf.equal(tf.strings.regex_replace(texts, ISO_8601, rf"\{_ISO_GROUPS['sign']}"), "-")
    return tf.where(west, local + zone, local - zone)
