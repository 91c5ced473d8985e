"""What is measured on maps: clarity, likeness, faithfulness, robustness, sanity.

Tensors and a model in, a number an image out.
"""
