"""Encoders: pictures and instructions to tokens."""
