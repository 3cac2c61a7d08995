"""Unsupervised domain adaptation: the teacher, its pseudo-labels, the views that passes look at,
and their objectives.
"""
