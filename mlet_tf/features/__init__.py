"""From raw columns to model inputs: vocabularies, the transform graph, packed rows."""
