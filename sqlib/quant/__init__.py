"""Quantisers and the layers that use them: tensors and bits in, tensors out.

Nothing here knows a network, a data set or a study. To be read in this order: `bits`, `activations`, `weights`, `layers`,
`convert`; `kernels` holds the arithmetic under them, each fast form beside the plain one that it equals.
"""
