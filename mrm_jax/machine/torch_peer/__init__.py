"""DACS, DAFormer and MIC in plain PyTorch, to be timed against (`bench --against torch`); nothing
else imports it. Eager, float32, [B, C, H, W], as the published code runs.
"""
