"""Encoders: pictures and instructions to features."""
