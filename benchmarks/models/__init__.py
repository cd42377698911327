"""Whole encoders: what a design saves of their time."""
