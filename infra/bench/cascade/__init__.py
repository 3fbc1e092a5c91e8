"""The cascade over a video, offline: how right its answers are, by true labels or by agreement, and what they cost."""
