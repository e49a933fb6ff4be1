"""phi4local: Microsoft's Phi-4 family on your own laptop or graphics card."""

__version__ = "0.1.0"
