"""Predictions of a trained network and the scores computed from them."""
