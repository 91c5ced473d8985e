"""Saliency maps of any network, and what is done with a batch by them. Each method is a row of `attribution.METHODS`."""
