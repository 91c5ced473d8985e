"""Saliency maps of any network, and what is done with a batch by them.

A new method is a function and a row in `attribution.METHODS`.
"""
