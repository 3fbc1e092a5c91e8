"""The demo: real video through two real Kafkas and two tiers on one machine, with an outage. Nothing in the product knows of it."""
