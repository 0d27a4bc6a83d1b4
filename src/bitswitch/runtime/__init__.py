"""Integer execution: networks that run on the stored integers, with no float weights."""
