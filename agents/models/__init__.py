"""Models as files: how Headwater's own is built, made small, stored and found again. Running them is `agents.inference`."""
