"""Producers: how video and images become frames on Kafka, numbered, paced and accounted for."""
