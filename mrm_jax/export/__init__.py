"""Trained networks in forms that run without training's code, each in a folder with a model card
and a program of ten lines that runs it."""
