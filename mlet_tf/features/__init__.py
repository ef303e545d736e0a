"""From raw columns to what a model takes: vocabularies, the transform graph, packed rows."""
