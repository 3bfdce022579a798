"""Fusion: several modalities to the features that a head acts on."""
