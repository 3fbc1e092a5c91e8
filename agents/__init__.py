"""What is done with records: leaf, region, resolver, alerts, models and the cascade. Only this room knows models."""
