"""Ordinary and saliency-guided training of one network on tensors. No file is read or written here."""
