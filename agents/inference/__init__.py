"""From an encoded image to detections: decode, prepare, predict, unpack. Engines run `predict`; everything else is a pure function."""
