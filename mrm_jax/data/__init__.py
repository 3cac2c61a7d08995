"""Pictures and labels: drawn scenes, folders, transforms and the order in which they are read.
numpy, OpenCV and grain only.
"""
