"""Unsupervised domain-adaptive semantic segmentation with Masked Representation Modeling."""

__version__ = "0.1.0"
