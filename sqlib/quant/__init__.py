"""Quantisers and the layers that use them: tensors and bits in, tensors out.

Nothing here knows a network, a data set or a study.
"""
