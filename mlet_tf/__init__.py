"""Multi-layer embedding training (MLET) for Keras 3.

Train embedding tables as products `W1 @ W2`, serve only the product (arXiv 2006.05623).
"""

from mlet_tf._version import __version__

__all__ = ["__version__"]
