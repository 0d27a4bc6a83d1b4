"""Whole networks as graphs, with integer codes between their layers."""
