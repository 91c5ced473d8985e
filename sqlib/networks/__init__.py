"""The study's networks, what they cost, and passes through them. They are built from `quant` alone.

A new network is a row of `architectures.ARCHITECTURES`.
"""
